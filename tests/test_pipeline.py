"""TextGenerator: same seed, same text, whatever the batches; and refusals in one line."""

import pytest
import torch

from fewstep.errors import UserError
from fewstep.pipeline import TextGenerator, decode_blocks
from fewstep.samplers import FlowSampler, default_sampling, heun, parse_rule
from fewstep.schedules import LogitNormalGrid, UniformGrid
from fewstep.shapes import example_generators, randn
from tests.bundles import BLOCK_SIZE, LATENT_DIM, STRIDE, only, tiny_bundle, tokenizer, with_identity


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return TextGenerator(tiny_bundle(self_conditioning=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"readout": "head", "reinjection": 0.6},
        {"reinjection": "by_position"},
        {"snap": "every", "reinjection": 0.5},
        {"snap": "confidence:0.5", "reinjection": 0.5},
    ],
)
def test_a_sample_depends_on_seed_and_place_not_on_the_batches(generator: TextGenerator, settings: dict) -> None:
    whole = generator.generate(7, 3, 5, **settings, batch_size=7)
    cut = generator.generate(5, 3, 5, **settings, batch_size=2)
    assert torch.equal(whole.ids[:5], cut.ids)
    assert whole.texts[:5] == cut.texts
    torch.testing.assert_close(whole.x_1[:5], cut.x_1, rtol=1e-3, atol=1e-3)  # rounding, which steps amplify
    other = generator.generate(7, 3, 6, **settings)
    assert not torch.allclose(whole.x_1, other.x_1)
    if "snap" not in settings:  # noise of its own for every sample
        assert torch.pdist(whole.x_1.flatten(1)).min() > 0.1


@pytest.mark.parametrize(
    ("identity", "grid"),
    [({}, LogitNormalGrid(-0.2, 1.1)), ({"grid_mean": None, "grid_std": None}, UniformGrid())],
)
def test_latents_are_those_of_the_sampler_that_the_identity_names(
    generator: TextGenerator, identity: dict, grid: UniformGrid | LogitNormalGrid
) -> None:
    made = TextGenerator(with_identity(generator.model, **identity)).generate(3, 4, 11, reinjection=0.5)
    flow, generators = generator.model.flow(), example_generators(11, 0, 3)
    x_0 = randn((3, BLOCK_SIZE // STRIDE, LATENT_DIM), torch.zeros(1), generators)
    sampler = FlowSampler(flow.path, grid=grid, reinjection=0.5)
    with torch.no_grad():
        expected = sampler.sample(flow, x_0, num_steps=4, generator=generators)
    torch.testing.assert_close(made.x_1, expected.x_1)
    assert made.nfe == expected.nfe == 4


def test_the_parallel_readout_takes_the_likeliest_token_by_default(generator: TextGenerator) -> None:
    made = generator.generate(3, 2)
    mask = torch.ones(3, BLOCK_SIZE // STRIDE, dtype=torch.bool)
    assert torch.equal(made.ids, generator.model.readout(made.x_1, mask).argmax(-1))


def test_solver_reinjection_and_temperature_reach_their_place(generator: TextGenerator) -> None:
    plain = generator.generate(3, 4)
    second_order = generator.generate(3, 4, solver="heun")
    assert second_order.nfe == 7
    assert torch.equal(second_order.x_1, generator.generate(3, 4, solver=heun).x_1)
    rules = ("0.7", [0.7, 0.7, 0.7, 0.0], "linear", "by_position", parse_rule("elf"))
    changed = [*({"reinjection": rule} for rule in rules), {"noise_temperature": 0.5}, {"noise_scale": 0.5}]
    for other in (second_order, *(generator.generate(3, 4, **settings) for settings in changed)):
        assert not torch.allclose(plain.x_1, other.x_1)
    assert not torch.equal(plain.ids, generator.generate(3, 4, temperature=5.0).ids)
    fresh, reused = (generator.generate(3, 4, reinjection=0.7, reuse_noise=reuse) for reuse in (False, True))
    assert not torch.allclose(fresh.x_1, reused.x_1)
    for draw in ({"top_p": 1e-6}, {"top_k": 1}):  # one token holds all the mass
        assert bool((generator.generate(3, 4, readout="head", **draw).log_probs == 0).all())


def test_decidedness_is_the_confidence_of_a_positions_least_certain_token(generator: TextGenerator) -> None:
    z = torch.randn(2, BLOCK_SIZE // STRIDE, LATENT_DIM, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(z.shape[:2], dtype=torch.bool)
    decidedness = generator.decidedness(z, mask)
    probabilities = generator.model.readout(z, mask).softmax(-1)
    for row in range(2):
        for position in range(BLOCK_SIZE // STRIDE):
            tokens = probabilities[row, position * STRIDE : (position + 1) * STRIDE]
            torch.testing.assert_close(decidedness[row, position], min(token.max() for token in tokens))
    assert not decidedness.requires_grad


def test_snapped_estimates_are_those_of_the_readout_and_the_encoder(generator: TextGenerator) -> None:
    plain, snapped = (generator.generate(3, 4, snap=snap) for snap in (None, "every"))
    assert not torch.allclose(snapped.x_1, plain.x_1)
    assert (plain.nfe, snapped.nfe) == (4, 12)
    late = generator.generate(3, 4, snap="last:1")
    assert late.nfe == 6
    mask = torch.ones(3, BLOCK_SIZE // STRIDE, dtype=torch.bool)
    read = generator.model.readout(plain.x_1, mask).argmax(-1)
    torch.testing.assert_close(late.x_1, generator.model.autoencoder.encode(read, torch.ones_like(read)).z)
    assert torch.equal(generator.generate(3, 4, snap="confidence:1").x_1, plain.x_1)


def test_switched_off_the_head_draws_from_latents_alone(generator: TextGenerator) -> None:
    on, off = (generator.generate(3, 2, readout=readout) for readout in ("head", "head_off"))
    assert torch.equal(on.x_1, off.x_1)
    assert torch.equal(on.ids[:, 0], off.ids[:, 0]) and not torch.equal(on.ids, off.ids)


@pytest.mark.parametrize("readout", ["parallel", "head"])
def test_stopped_texts_end_at_their_end_of_text(generator: TextGenerator, readout: str) -> None:
    draw = {"readout": readout, "temperature": 50.0, "top_k": 200}
    free = generator.generate(400, 1, **draw)
    stopped, end = generator.generate(400, 1, **draw, stop=True), tokenizer().eos_token_id
    assert bool(free.mask.all()) and not bool(stopped.mask.all())
    assert torch.equal(stopped.ids[stopped.mask], free.ids[stopped.mask])
    alone = TextGenerator(with_identity(generator.model, blocks="documents"))
    assert torch.equal(alone.generate(400, 1, **draw).ids, stopped.ids), "a text of its own always ends"
    assert bool((stopped.ids[~stopped.mask] == tokenizer().pad_token_id).all())
    for row, mask, text in zip(stopped.ids, stopped.mask, stopped.texts, strict=True):
        length = int(mask.sum())
        assert bool(mask[:length].all())
        assert end not in row[: length - 1].tolist()
        assert length == BLOCK_SIZE or row[length - 1] == end
        assert text == decode_blocks(tokenizer(), row[None, :length])[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"readout": "serial"}, "readout is 'serial': expected one of parallel, mask_predict, head"),
        ({"solver": "rk4"}, "solver is 'rk4': expected one of euler, heun"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_a_number_out_of_range_is_one_line(generator: TextGenerator, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        generator.generate(**{"num_samples": 2, **arguments})
    assert message in str(caught.value)


def test_a_missing_part_names_the_stage_to_train() -> None:
    parts = only(tiny_bundle(), "autoencoder", "readout", "denoiser")
    with pytest.raises(UserError, match=r"no head .*train the stage head first"):
        TextGenerator(parts).generate(1, readout="head")
    with pytest.raises(UserError, match=r"no denoiser .*train the stage flow first"):
        TextGenerator(only(parts, "autoencoder", "readout")).generate(1)


UNFIT = [
    *({"reinjection": rule} for rule in (0.0, 0.9, [1.0, 1.0, 0.9, 1.0], "linear", "by_position")),
    {"reinjection": 1.0, "solver": "heun"},
]
KINDS = {
    "trained for 4 steps": (
        {"trained_nfe": 4, "objective": "ProgressiveDistillation"},
        [{}],
        [{"num_steps": 8}, {"solver": "heun"}],
        r"(euler|heun) with \d steps .*ProgressiveDistillation.* 4 steps",
    ),
    "endpoint": (
        {"estimate": "endpoint", "objective": "ConsistencyTraining"},
        [*({"reinjection": rule} for rule in (None, 1.0, [1.0, 1.0, 1.0, 0.0], "window:1,0,1"))],
        UNFIT,
        r"^[^\n]*ConsistencyTraining\) .*strength 1, or with 1 step$",
    ),
    "flow map": (
        {"estimate": "flow_map", "objective": "MeanFlow"},
        [{"reinjection": strength} for strength in (0.0, 0.5, 1.0)],
        [{"solver": "heun"}],
        r"heun .*MeanFlow\) trained it to jump, .*use euler",
    ),
}


@pytest.mark.parametrize(("identity", "fitting", "unfit", "message"), KINDS.values(), ids=KINDS)
def test_a_sampler_that_the_model_was_not_trained_for_is_refused_with_what_would_fit(
    identity: dict, fitting: list[dict], unfit: list[dict], message: str
) -> None:
    generator = TextGenerator(with_identity(tiny_bundle(), **identity))
    for settings in fitting:
        assert generator.generate(1, 4, **settings).nfe == 4
    for settings in unfit:
        with pytest.raises(UserError, match=message):
            generator.generate(1, **{"num_steps": 4, **settings})


@pytest.mark.parametrize(
    ("identity", "steps"),
    [
        ({}, [(1, 0.0), (4, 0.0)]),
        ({"estimate": "flow_map"}, [(1, 0.0), (4, 0.0)]),
        ({"estimate": "endpoint"}, [(1, 0.0), (4, 1.0)]),
        ({"trained_nfe": 2}, [(2, 0.0), (2, 0.0)]),
    ],
)
def test_the_steps_that_a_model_is_said_to_take_are_accepted(identity: dict, steps: list[tuple[int, float]]) -> None:
    bundle = with_identity(tiny_bundle(), **identity)
    found = [default_sampling(bundle.identity, number) for number in (1, 4)]
    assert found == steps
    for own in found:
        TextGenerator(bundle).sampler(own.num_steps, own.reinjection)


def test_an_end_of_text_parts_paragraphs_and_is_not_shown() -> None:
    end = tokenizer().eos_token_id
    one, two = (tokenizer()(text)["input_ids"] for text in ("the old ship", "nobody knew"))
    row = torch.tensor([[end, *one, end, end, *two, end]])
    assert decode_blocks(tokenizer(), row) == ("the old ship\n\nnobody knew",)
