"""Traces: the texts that generation writes, with the distances and settling steps that diagnostics define."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.trajectories import decision_step
from fewstep.evaluation.adapters import HeadConditionals, decoder_of
from fewstep.lab.report import traces as module
from fewstep.lab.report.run import read_json
from fewstep.lab.report.traces import TracePath, Traces, collect_traces, planned_paths, token_text, traces_of_run
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn
from fewstep.types import Trajectory
from tests.bundles import BLOCK_SIZE, only, tiny_bundle, with_identity
from tests.evaluation.subjects import mild_bundle
from tests.lab.images.models import tiny_image_model

STEPS = (1, 2, 4)
SETTINGS = {"deterministic": ("parallel", 0.0), "reinjection": ("parallel", 1.0), "head": ("head", 0.0)}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", STEPS)


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return TextGenerator(mild_bundle())


@pytest.fixture(scope="module")
def collected(generator: TextGenerator) -> Traces:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "STEPS", STEPS)
        return collect_traces(generator.model, 3, seed=5)


def ids_of(traces: Traces, path: TracePath) -> torch.Tensor:
    """(N, B, L)."""
    rows = torch.tensor([sample.tokens for sample in path.samples])
    return torch.tensor(traces.token_ids)[rows].transpose(0, 1)


def path_of(traces: Traces, mode: str) -> TracePath:
    return next(path for path in traces.paths if (path.mode, path.num_steps) == (mode, 4))


def trajectory(bundle: SavedModel, reinjection: float) -> tuple[Trajectory, list[torch.Generator]]:
    """Four steps, and the noise as they leave it."""
    sources, flow = example_generators(5, 0, 3), bundle.flow()
    x_0 = randn((3, *bundle.latent_shape()), next(flow.parameters()), sources)
    sampler = FlowSampler(flow.path, grid=bundle.identity.default_grid(), reinjection=reinjection)
    with torch.no_grad():
        return sampler.sample(flow, x_0, num_steps=4, generator=sources), sources


def test_the_last_row_of_every_mode_is_what_generation_writes(generator: TextGenerator, collected: Traces) -> None:
    assert [(path.mode, path.num_steps) for path in collected.paths] == [(mode, n) for mode in SETTINGS for n in STEPS]
    for path in collected.paths:
        readout, gamma = SETTINGS[path.mode]
        written = generator.generate(3, path.num_steps, seed=5, readout=readout, reinjection=gamma)
        assert torch.equal(ids_of(collected, path)[-1], written.ids), (path.mode, path.num_steps)


def test_every_row_is_read_from_the_estimate_of_its_step_and_settles_as_diagnostics_say(
    generator: TextGenerator, collected: Traces
) -> None:
    sampled, _ = trajectory(generator.model, 0.0)
    decode, noise = decoder_of(generator.model.reader()), torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = [decode(x1_hat).argmax(-1) for x1_hat in sampled.predictions]
        settled = decision_step(sampled.predictions, lambda z: decode(z).argmax(-1), generator=noise)
    path = path_of(collected, "deterministic")
    assert torch.equal(ids_of(collected, path), torch.stack(rows))
    assert path.times == pytest.approx(sampled.times.tolist(), abs=1e-4)
    steps = torch.tensor([sample.settled for sample in path.samples])
    assert len(steps.unique()) > 1
    assert [float((steps == k).double().mean()) for k in range(1, 5)] == pytest.approx(settled.curves["shares"].y)


@pytest.mark.parametrize("mode", ["deterministic", "head"])
def test_distances_are_those_of_the_diagnostics(generator: TextGenerator, collected: Traces, mode: str) -> None:
    """The parallel readout's at the estimate; the head's at the blurred estimate, given the tokens that it drew."""
    bundle, path = generator.model, path_of(collected, mode)
    sampled, sources = trajectory(bundle, 0.0)
    z, decode = sampled.predictions[1], decoder_of(bundle.reader())
    if mode == "head":
        head = bundle.commitment_head()
        z = z + head.trust_level * randn(tuple(z.shape), z, sources)
        decode = partial(HeadConditionals(head, head.trust_level).logits, ids=ids_of(collected, path)[1])
    expected = margins(decode, z, torch.arange(BLOCK_SIZE).expand(3, -1)).distance
    distances = torch.tensor([sample.distances[1] for sample in path.samples], dtype=torch.float64)
    torch.testing.assert_close(distances, expected, rtol=6e-3, atol=0)  # three digits are kept


def test_a_sample_does_not_depend_on_how_many_there_are_nor_on_memory(
    generator: TextGenerator, collected: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(module, "MAX_TOKENS", 3)
    single = collect_traces(generator.model, 1, seed=5)
    assert (single.num_tokens, single.block_size) == (3, BLOCK_SIZE)
    for few, many in zip(single.paths, collected.paths, strict=True):
        assert torch.equal(ids_of(single, few)[:, 0], ids_of(collected, many)[:, 0, :3])
        assert few.samples[0].settled == many.samples[0].settled[:3]


def plans_of(bundle: SavedModel) -> list[tuple[str, int, float]]:
    paths = planned_paths(bundle)
    return [(path.mode, path.num_steps, path.reinjection) for path in paths if path.num_steps != 2]


def test_only_modes_that_the_model_was_trained_for_are_followed() -> None:
    bundle = tiny_bundle()
    rest = [("reinjection", 1, 1.0), ("reinjection", 4, 1.0), ("head", 1, 0.0)]
    assert plans_of(bundle) == [("deterministic", 1, 0.0), ("deterministic", 4, 0.0), *rest, ("head", 4, 0.0)]
    headless = only(bundle, "autoencoder", "readout", "denoiser")
    assert {mode for mode, _, _ in plans_of(headless)} == {"deterministic", "reinjection"}
    ends = with_identity(bundle, objective="ends", estimate="endpoint")
    assert plans_of(ends) == [("deterministic", 1, 0.0), *rest, ("head", 4, 1.0)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tiny_bundle().save_pretrained(tmp_path / "model")
    return tmp_path


def mark(run: Path) -> Traces:
    """Change a text in the saved file, so that it shows which one is used."""
    file = run / "traces.json"
    marked = replace(saved := read_json(Traces, file), vocabulary=("kept", *saved.vocabulary[1:]))
    file.write_text(json.dumps(asdict(marked)))
    return marked


def test_a_run_is_traced_once_and_again_for_another_model_or_number(run: Path, tmp_path: Path) -> None:
    first = traces_of_run(run, 2)
    assert read_json(Traces, run / "traces.json") == first
    marked = mark(run)
    assert traces_of_run(run, 2) == marked != first
    more = traces_of_run(run, 3)
    assert more is not None and more.num_samples == 3 and "kept" not in more.vocabulary
    mark(run)
    tiny_bundle(seed=1).save_pretrained(run / "model", overwrite=True)
    other = traces_of_run(run, 3)
    assert other is not None and other.model != more.model and "kept" not in other.vocabulary
    (run / "model").rename(tmp_path / "away")
    assert traces_of_run(run, 9) == other  # as it is
    (run / "traces.json").unlink()
    assert traces_of_run(run, 9) is None


@pytest.mark.parametrize("model", [lambda: only(tiny_bundle(), "autoencoder", "readout"), tiny_image_model])
def test_models_that_generate_no_text_have_no_traces(model: Callable[[], SavedModel], tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "model")
    assert traces_of_run(tmp_path, 2) is None
    assert not (tmp_path / "traces.json").exists()


def test_texts_of_tokens_put_together_are_the_text() -> None:
    tokenizer, text = tiny_bundle().tokenizer, "the old ship\nsailed past  the lights"
    assert "".join(token_text(tokenizer, token) for token in tokenizer(text)["input_ids"]) == text
    assert token_text(tokenizer, tokenizer.eos_token_id) == "<|endoftext|>"
    parts = [token_text(tokenizer, token) for token in tokenizer("ü")["input_ids"]]  # not in the lines: two bytes
    assert parts == ["\ufffd", "\ufffd"]


@pytest.mark.parametrize(
    ("model", "decoder", "texts"),
    [
        (models.WordLevel({"▁the": 0, "ship": 1}, unk_token="ship"), decoders.Metaspace(), [" the", "ship"]),
        (models.WordPiece({"ship": 0, "##ing": 1}, unk_token="ship"), decoders.WordPiece(), [" ship", "ing"]),
    ],
)
def test_spaces_that_other_vocabularies_leave_out_of_a_first_word_are_there(model, decoder, texts) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert [token_text(fast, token) for token in (0, 1)] == texts
