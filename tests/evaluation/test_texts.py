"""Sampled text in a sweep: it is the generator's own, and its values are those of a plain calculation."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.decoding import read_tokens
from fewstep.diagnostics.trajectories import late_flip_rate
from fewstep.errors import UserError
from fewstep.evaluation.adapters import decoder_of
from fewstep.evaluation.rows import FLOW, HELD_OUT, Row
from fewstep.evaluation.scorers import RunScorer, ScoredText
from fewstep.evaluation.sweep import Batch, Group, Sweep
from fewstep.evaluation.text_plan import RealText, TextStudy
from fewstep.evaluation.texts import FlowTexts, Sampling, fixed_group, flow_groups, noise_group, read_back_group
from fewstep.metrics.text import distinct_n, mauve_score
from fewstep.pipeline import TextGenerator, decode_blocks
from fewstep.shapes import example_generators, randn
from fewstep.types import TokenBatch
from tests.bundles import BLOCK_SIZE, STRIDE, only, tiny_bundle, tokenizer, with_identity
from tests.evaluation.subjects import mild_bundle, real_blocks

SAMPLES, SEEDS = 3, (0, 5)
READOUTS = ("parallel", "head", "head_off")
SAMPLING = Sampling(3, "0.5", 0.9)


class LengthScorer:
    """Gives every token one nat times the log of the text's first token."""

    name = "length"

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    def identity(self) -> dict[str, str]:
        return {"class": "LengthScorer"}

    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> ScoredText:
        self.seen.append(tuple(texts))
        tokens = mask.sum(-1).double()
        return ScoredText(tokens * ids[:, 0].double().log1p(), tokens, tokens)


def held_out() -> TokenBatch:
    rows = torch.arange(SAMPLES * len(SEEDS)) % len(real_blocks().ids)
    return TokenBatch(real_blocks().ids[rows], real_blocks().mask[rows])


def study(
    scorer: object | None = None, *, packed: bool = True, other: TokenBatch | None = None, **changes: object
) -> TextStudy:
    bundle = mild_bundle()
    scorer = RunScorer(bundle.scorer(), tokenizer()) if scorer is None else scorer
    real = RealText(held_out(), other, real_blocks().ids.flatten(), packed, "text.txt", "fingerprint")
    settings = {"batch_size": 2, "cci_examples": 2, "num_samples": SAMPLES, "seeds": SEEDS}
    return TextStudy(bundle, scorer, real, **(settings | changes))


def swept(own: TextStudy, groups: Sequence[Group] | None = None, **options: object) -> list[Row]:
    every = [*own.yardsticks(), *flow_groups(own.bundle, [SAMPLING], READOUTS)]
    return list(Sweep(own.plan(every if groups is None else groups, **options)).rows())


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return swept(study())


def by(rows: list[Row], name: str, readout: str | None = None) -> Row:
    (row,) = (row for row in rows if (row.setting["name"], row.setting.get("readout")) == (name, readout))
    return row


def generated(readout: str, bundle: object | None = None, **options: object) -> object:
    """What the generator makes of both seeds."""
    generator = TextGenerator(mild_bundle() if bundle is None else bundle)
    how = {"reinjection": 0.5, "noise_temperature": 0.9} | options
    each = [generator.generate(SAMPLES, 3, seed, batch_size=2, readout=readout, **how) for seed in SEEDS]
    return SimpleNamespace(
        ids=torch.cat([one.ids for one in each]), x_1=torch.cat([one.x_1 for one in each]), nfe=each[0].nfe
    )


CONTROLS = [
    {},
    {"reinjection": 1.0, "noise_temperature": 1.0},
    {"noise_scale": 0.5, "noise_temperature": 1.0},
    {"reuse_noise": True, "noise_temperature": 1.0},
    {"snap": "every", "noise_temperature": 1.0},
    {"reuse_noise": True, "noise_scale": 0.8, "snap": "confidence:0.3"},
]


@pytest.mark.parametrize("options", CONTROLS)
def test_samples_are_those_that_the_generator_makes_of_the_same_seed(options: dict[str, object]) -> None:
    how = {"reinjection": 0.5, "noise_temperature": 0.9} | options
    how |= {"noise": "reused" if how.pop("reuse_noise", False) else "fresh", "reinjection": f"{how['reinjection']:g}"}
    (group,) = flow_groups(mild_bundle(), [Sampling(3, **how)], READOUTS)
    batches = [
        Batch(index, seed, first, count) for index, seed in enumerate(SEEDS) for first, count in ((0, 2), (2, 1))
    ]
    parts = [group.make(batch, group.settings) for batch in batches]
    for index, readout in enumerate(READOUTS):
        theirs = generated(readout, **options)
        for name in ("ids", "x_1"):
            ours = torch.cat([part[index].tensors[name] for part in parts])
            assert torch.equal(ours, getattr(theirs, name))
        assert parts[0][index].numbers["nfe"] == theirs.nfe + (BLOCK_SIZE if readout == "head" else 1)


def test_every_network_pass_is_counted(rows: list[Row]) -> None:
    assert [by(rows, FLOW, readout).value("nfe") for readout in READOUTS] == [3 + 1, 3 + BLOCK_SIZE, 3 + 1]
    assert [by(rows, name).value("nfe") for name in ("language model", HELD_OUT)] == [BLOCK_SIZE, None]
    for snap, passes in (("none", 3 + 2 + 1), ("every", 3 * 3 + 2 + 1)):
        (group,) = flow_groups(tiny_bundle(), [Sampling(3, "by_position", snap=snap)], ("parallel",))
        for _ in range(2):
            assert group.make(Batch(0, 0, 0, 2), group.settings)[0].numbers["nfe"] == passes


def test_values_of_a_row_are_those_of_a_plain_calculation(rows: list[Row]) -> None:
    bundle, row, theirs = mild_bundle(), by(rows, FLOW, "head"), generated("head")
    network, ids = bundle.language_model, theirs.ids
    with torch.no_grad():
        log_probs = network(network.shift_right(ids)).double().log_softmax(-1)
        z = bundle.encoder().encode(held_out().ids, held_out().mask).z
    nats = -log_probs.gather(-1, ids[..., None])[..., 0]
    shares = [torch.unique(sample, return_counts=True)[1].double() / BLOCK_SIZE for sample in ids]
    expected = {
        "perplexity": math.exp(nats.mean()),
        "entropy_nats": sum(float(-(p * p.log()).sum()) for p in shares) / len(ids),
        "rms_ratio": float(theirs.x_1.square().mean().sqrt() / z.square().mean().sqrt()),
        "distinct_2": distinct_n(ids, 2),
        "scored_tokens": ids.numel(),
        "tokens_per_second": ids.numel() / row.seconds,
    }
    assert {name: row.value(name) for name in expected} == pytest.approx(expected, rel=1e-5)
    assert row.values["perplexity"].by_seed == pytest.approx(
        [math.exp(p.mean()) for p in nats.split(SAMPLES)], rel=1e-5
    )
    for name in ("perplexity", "entropy_nats", "rms_ratio"):
        assert row.interval(name).low <= row.value(name) <= row.interval(name).high
    assert row.examples == decode_blocks(tokenizer(), ids[:3])


def test_text_of_the_train_split_is_all_copies_and_shuffled_words_are_not(rows: list[Row]) -> None:
    assert by(rows, HELD_OUT).value("longest_copy_tokens") == BLOCK_SIZE
    assert by(rows, HELD_OUT).value("memorised_8grams") == 1 > by(rows, "words shuffled").value("memorised_8grams")


def test_the_late_flip_rate_is_that_of_the_diagnostics(rows: list[Row]) -> None:
    bundle, rates = mild_bundle(), []
    for seed in SEEDS:
        seen: list[Tensor | None] = []
        how = {
            "reinjection": 0.5,
            "noise_temperature": 0.9,
            "on_state": lambda state, _, s=seen: s.append(state.x1_hat),
        }
        TextGenerator(bundle).generate(SAMPLES, 3, seed, **how)
        read = partial(read_tokens, decoder_of(bundle.reader()))
        rates.append(late_flip_rate(seen[1:], read, generator=torch.Generator())["late_flip_rate"].value)
    for readout in READOUTS:
        assert by(rows, FLOW, readout).value("late_flip_rate") == pytest.approx(sum(rates) / len(rates))
    assert sum(rates) > 0
    own = study()
    assert swept(own, flow_groups(own.bundle, [Sampling(1)], READOUTS))[0].value("late_flip_rate") is None


def test_cci_is_zero_exactly_where_the_head_sees_no_tokens(rows: list[Row]) -> None:
    assert by(rows, FLOW, "head_off").value("cci") == 0 < 0.01 < by(rows, FLOW, "head").value("cci")
    assert by(rows, FLOW, "parallel").value("cci") is None
    own = study(cci_examples=0)
    assert swept(own, flow_groups(own.bundle, [SAMPLING], ("head",)))[0].value("cci") is None


def test_noise_read_without_a_flow_is_the_floor_and_as_large_as_noise_is() -> None:
    bundle, group = tiny_bundle(), noise_group(tiny_bundle())
    (samples,) = group.make(Batch(0, 5, 1, 2), group.settings)
    x_0 = randn((2, *bundle.latent_shape()), torch.zeros(()), example_generators(5, 1, 2))
    assert torch.equal(samples.tensors["ids"], bundle.reader()(x_0, torch.ones(x_0.shape[:2]).bool()).argmax(-1))
    assert torch.equal(samples.tensors["x_1"], x_0)


@pytest.mark.parametrize(("packed", "generated", "real"), [(True, 16, 8), (False, 3 + 8, 8)])
def test_generated_blocks_count_to_their_first_end_where_the_text_is_not_packed(
    packed: bool, generated: int, real: int
) -> None:
    end = int(tokenizer().eos_token_id)
    ids = torch.tensor([[5, 6, end, 7, 8, 9, 9, 9], [5, 6, 7, 8, 5, 6, 7, 8]])
    tokens = TokenBatch(ids, torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]] * 2).bool())
    scorer = LengthScorer()
    own = study(scorer, packed=packed, num_samples=2, seeds=(0,))
    groups = [fixed_group("new", tokens, padded=False), fixed_group("real", tokens)]
    assert [row.value("scored_tokens") for row in swept(own, groups)] == [generated, real]
    assert scorer.seen[-1] == tuple(decode_blocks(tokenizer(), row[:4][None])[0] for row in ids)


def test_unscored_samples_leave_the_interval_finite_and_unscored_rows_have_no_perplexity() -> None:
    seen = torch.ones(2, BLOCK_SIZE, dtype=torch.bool)
    for unscored in (1, 2):
        seen[:unscored] = False
        own = study(LengthScorer(), num_samples=2, seeds=(0,))
        (row,) = swept(own, [fixed_group("some", TokenBatch(held_out().ids[:2], seen))], measures=("scores",))
        value = row.values["perplexity"]
        if unscored == 1:
            assert value.interval.low == value.value == value.interval.high
        else:
            assert (value.value, value.interval, value.by_seed) == (None, None, (None,))


def test_existing_texts_are_each_measured_once_whatever_the_seeds() -> None:
    ids = torch.arange(5, 5 + SAMPLES * len(SEEDS))[:, None].repeat(1, BLOCK_SIZE)
    group = fixed_group("some", TokenBatch(ids, torch.ones_like(ids).bool()))
    (row,) = swept(study(LengthScorer()), [group])
    assert row.value("distinct_2") == len(ids) / ids[:, 1:].numel()
    assert row.value("perplexity") == pytest.approx(math.exp(ids[:, 0].double().log1p().mean()))


def test_yardsticks_need_only_the_parts_that_they_are_made_with() -> None:
    bundle = only(tiny_bundle(), "autoencoder", "denoiser", "readout")
    names = [group.settings[0]["name"] for group in replace(study(), bundle=bundle).yardsticks()]
    assert names == ["held-out text", "words shuffled", "unigram draws", "pure noise", "held-out text read back"]
    own = study()
    assert [group.settings[0]["name"] for group in own.yardsticks()] == [*names, "language model"]


@pytest.mark.parametrize(
    ("parts", "identity", "sampling", "readout", "message"),
    [
        (
            (),
            {},
            Sampling(3),
            "paralel",
            "readout is 'paralel': expected one of parallel, mask_predict, head, head_off",
        ),
        (("autoencoder", "denoiser"), {}, Sampling(3), "head_off", "has no head"),
        ((), {"trained_nfe": 2}, Sampling(3), "parallel", "trained it for euler with 2 steps"),
        ((), {}, Sampling(3, "0", -1.0), "parallel", "noise_temperature is -1.0"),
        ((), {}, Sampling(4, "listed:0.5,0.5"), "parallel", r"4 steps with reinjection listed:0\.5,0\.5"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    parts: tuple[str, ...], identity: dict[str, int], sampling: Sampling, readout: str, message: str
) -> None:
    bundle = with_identity(only(tiny_bundle(), *parts) if parts else tiny_bundle(), **identity)
    with pytest.raises(UserError, match=message):
        FlowTexts(bundle, sampling, (readout,))


@pytest.fixture
def mauve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: a number that any change of any feature moves, and that tells real from samples."""

    def compute_mauve(p_features: np.ndarray, q_features: np.ndarray, **settings: object) -> SimpleNamespace:
        assert p_features.dtype == q_features.dtype == np.float32
        sides = [(features @ np.sin(np.arange(features.shape[1]))).mean() for features in (p_features, q_features)]
        return SimpleNamespace(mauve=float(np.tanh(2 * sides[0] - sides[1])))

    package = ModuleType("mauve")
    package.compute_mauve = compute_mauve
    monkeypatch.setitem(sys.modules, "mauve", package)


def test_mauve_compares_with_held_out_text_and_that_with_other_text_or_not_at_all(mauve: None) -> None:
    own = study(mauve=True)
    measured = swept(own)
    scorer = own.scorer
    real = scorer.features([], held_out().ids, held_out().mask)
    for readout in ("parallel", "head"):
        ids = generated(readout).ids
        expected = mauve_score(real, scorer.features([], ids, torch.ones_like(ids, dtype=torch.bool)))
        assert by(measured, FLOW, readout).value("mauve") == pytest.approx(expected, rel=1e-4)
    assert by(measured, HELD_OUT).value("mauve") is None
    assert "MAUVE: against" in own.plan([]).caption and "MAUVE" not in study().plan([]).caption
    assert own.plan([]).protocol_hash != study().plan([]).protocol_hash
    other = TokenBatch(held_out().ids.roll(1, 1), held_out().mask)
    (row,) = swept(study(mauve=True, other=other), own.yardsticks()[:1])
    assert row.value("mauve") == pytest.approx(mauve_score(scorer.features([], other.ids, other.mask), real), rel=1e-5)


def test_mauve_of_one_text_and_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch, mauve: None) -> None:
    own = study(mauve=True)
    single = replace(own.real, held_out=TokenBatch(held_out().ids[:1], held_out().mask[:1]))
    with pytest.raises(UserError, match="MAUVE of 1 text: expected at least 2"):
        replace(own, real=single).plan([])
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[mauve\]'"):
        own.plan([])


def test_the_runs_features_have_read_all_of_a_text_and_nothing_behind_it(generator: torch.Generator) -> None:
    model = tiny_bundle().scorer()
    ids = torch.randint(len(tokenizer()), (7, BLOCK_SIZE), generator=generator)
    lengths = torch.tensor([8, 1, 3, 0, 5, 8, 2])
    mask = torch.arange(BLOCK_SIZE) < lengths[:, None]
    features = RunScorer(model, tokenizer(), batch_size=3).features([""] * 7, ids, mask)
    with torch.no_grad():
        for row, length, state in zip(ids, lengths.tolist(), features, strict=True):
            # The logits behind the last token are those of the block one token longer, whatever that token is.
            longer = torch.cat([row[:length], torch.tensor([3])])[None]
            logits = model.network(model.network.shift_right(longer))[0, -1]
            torch.testing.assert_close(model.network.outputs(state), logits, rtol=1e-4, atol=1e-4)
    behind = torch.where(mask, ids, (ids + 1) % len(tokenizer()))
    assert torch.equal(RunScorer(model, tokenizer(), batch_size=3).features([""] * 7, behind, mask), features)


@pytest.mark.parametrize("counts", [(), (0, 0, 1, 0, 1, 0, 0, 2)])
def test_real_text_is_read_back_from_its_own_latents(counts: tuple[int, ...]) -> None:
    bundle = with_identity(tiny_bundle(), blocks="documents", length_counts=counts)
    ids = torch.randint(5, 250, (6, BLOCK_SIZE), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(BLOCK_SIZE) < torch.tensor([3, 4, 8, 8, 5, 1])[:, None]
    group = read_back_group(bundle, TokenBatch(ids, mask))
    made = group.make(Batch(0, 0, 2, 4), group.settings)[0].tensors
    for row, text in enumerate(ids[2:6]):
        length = int(mask[row + 2].sum()) if counts else BLOCK_SIZE
        kept = -(-length // STRIDE) * STRIDE
        seen = torch.arange(BLOCK_SIZE)[None] < length
        with torch.no_grad():
            latents = bundle.encoder().encode(text[None], seen)
            alone = bundle.reader().logits(latents.z, latents.mask).argmax(-1)[0]
        assert torch.equal(made["ids"][row, :kept], alone[:kept])
        assert torch.equal(made["ids"][row, kept:], text[kept:])
