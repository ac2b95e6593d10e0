"""What traces promise: the texts that generation writes, the distances and settling steps that diagnostics define."""

import json
import re
from itertools import pairwise

import pytest
import torch

from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.trajectories import decision_step
from fewstep.errors import UserError
from fewstep.evaluation.adapters import HeadConditionals, decoder_of
from fewstep.lab.report.trace_plan import planned_paths
from fewstep.lab.report.traces import SampleTrace, TracePath, Traces, collect_traces
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn
from tests.bundles import BLOCK_SIZE, only, tiny_bundle, with_identity
from tests.evaluation.subjects import mild_bundle

STEPS = (1, 2, 4)
SETTINGS = {
    "deterministic": ("parallel", 0.0),
    "reinjection": ("parallel", 0.7),
    "commitment": ("head", 0.0),
}


@pytest.fixture(scope="module")
def generator_and_traces() -> tuple[TextGenerator, Traces]:
    generator = TextGenerator(mild_bundle())
    return generator, collect_traces(generator, num_samples=3, steps=STEPS, reinjection=0.7, seed=5)


def ids_of(traces: Traces, path: TracePath) -> torch.Tensor:
    """(N, B, L)."""
    rows = torch.tensor([sample.tokens for sample in path.samples])
    return torch.tensor(traces.token_ids)[rows].transpose(0, 1)


def test_the_last_row_of_every_way_is_what_generation_writes(
    generator_and_traces: tuple[TextGenerator, Traces],
) -> None:
    generator, traces = generator_and_traces
    assert [(path.way, path.num_steps) for path in traces.paths] == [(way, n) for way in SETTINGS for n in STEPS]
    for path in traces.paths:
        readout, gamma = SETTINGS[path.way]
        written = generator.generate(3, path.num_steps, seed=5, readout=readout, reinjection=gamma)
        assert torch.equal(ids_of(traces, path)[-1], written.ids), path.plan


def test_at_the_start_the_ways_of_the_parallel_readout_and_all_numbers_of_steps_agree(
    generator_and_traces: tuple[TextGenerator, Traces],
) -> None:
    """The first estimate is made of the noise alone, and that is the same for all."""
    traces = generator_and_traces[1]
    firsts = [ids_of(traces, path)[0] for path in traces.paths if path.way != "commitment" and path.num_steps > 1]
    assert len(firsts) == 4
    assert all(torch.equal(first, firsts[0]) for first in firsts)
    ends = [ids_of(traces, path)[-1] for path in traces.paths if path.way != "commitment" and path.num_steps == 4]
    assert not torch.equal(*ends)  # re-injection went another way


def test_every_row_is_read_from_the_estimate_of_its_step_and_settles_as_diagnostics_say(
    generator_and_traces: tuple[TextGenerator, Traces], generator: torch.Generator
) -> None:
    bundle, traces = generator_and_traces[0].model, generator_and_traces[1]
    sources = example_generators(5, 0, 3)
    flow = bundle.flow()
    x_0 = randn((3, *bundle.latent_shape()), next(flow.parameters()), sources)
    sampler = FlowSampler(flow.path, grid=bundle.identity.default_grid(), reinjection=0.7)
    with torch.no_grad():
        made = sampler.sample(flow, x_0, num_steps=4, generator=sources)
        decode = decoder_of(bundle.reader())
        rows = [decode(x1_hat).argmax(-1) for x1_hat in made.predictions]
        settled = decision_step(made.predictions, lambda z: decode(z).argmax(-1), generator=generator)
    (path,) = (one for one in traces.paths if one.way == "reinjection" and one.num_steps == 4)
    assert torch.equal(ids_of(traces, path), torch.stack(rows))
    assert path.times == pytest.approx(made.times.tolist(), abs=1e-4)
    steps = torch.tensor([sample.settled for sample in path.samples])
    assert len(steps.unique()) > 1
    assert [float((steps == k).double().mean()) for k in range(1, 5)] == pytest.approx(settled.curves["shares"].y)


def test_a_token_changes_at_the_step_where_it_settles_and_never_after(
    generator_and_traces: tuple[TextGenerator, Traces],
) -> None:
    for path in generator_and_traces[1].paths:
        for sample in path.samples:
            for column, settled in zip(zip(*sample.tokens, strict=True), sample.settled, strict=True):
                changes = [k for k, (before, after) in enumerate(pairwise(column), 2) if before != after]
                assert settled == max(changes, default=1)


@pytest.mark.parametrize("way", ["deterministic", "commitment"])
def test_distances_are_those_of_the_diagnostics(generator_and_traces: tuple[TextGenerator, Traces], way: str) -> None:
    """The parallel readout's at the estimate; the head's at the blurred estimate, given the tokens that it drew."""
    bundle, traces = generator_and_traces[0].model, generator_and_traces[1]
    sources = example_generators(5, 0, 3)
    flow = bundle.flow()
    x_0 = randn((3, *bundle.latent_shape()), next(flow.parameters()), sources)
    with torch.no_grad():
        sampler = FlowSampler(flow.path, grid=bundle.identity.default_grid())
        z = sampler.sample(flow, x_0, num_steps=4, generator=sources).predictions[1]
    (path,) = (one for one in traces.paths if one.way == way and one.num_steps == 4)
    decode = decoder_of(bundle.reader())
    if way == "commitment":
        head = bundle.commitment_head()
        z = z + head.trust_level * randn(tuple(z.shape), z, sources)
        decode = HeadConditionals(head, head.trust_level).given(ids_of(traces, path)[1])
    everywhere = torch.arange(BLOCK_SIZE).expand(3, -1)
    expected = margins(decode, z, everywhere).distance
    found = torch.tensor([sample.distances[1] for sample in path.samples], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=6e-3, atol=0)  # three digits are kept


def test_a_sample_does_not_depend_on_how_many_there_are(generator_and_traces: tuple[TextGenerator, Traces]) -> None:
    generator, traces = generator_and_traces
    one = collect_traces(generator, num_samples=1, steps=STEPS, reinjection=0.7, seed=5)
    for few, many in zip(one.paths, traces.paths, strict=True):
        assert torch.equal(ids_of(one, few)[:, 0], ids_of(traces, many)[:, 0])
    other = collect_traces(generator, num_samples=1, steps=STEPS, reinjection=0.7, seed=6)
    assert not torch.equal(ids_of(other, other.paths[0]), ids_of(one, one.paths[0]))


def test_of_a_long_block_the_first_tokens_are_looked_at(generator_and_traces: tuple[TextGenerator, Traces]) -> None:
    generator, traces = generator_and_traces
    short = collect_traces(generator, num_samples=3, steps=STEPS, reinjection=0.7, seed=5, max_tokens=3)
    assert (short.num_tokens, short.block_size) == (3, BLOCK_SIZE)
    assert (traces.num_tokens, traces.block_size) == (BLOCK_SIZE, BLOCK_SIZE)
    for few, many in zip(short.paths, traces.paths, strict=True):
        assert torch.equal(ids_of(short, few), ids_of(traces, many)[:, :, :3])
        for one, other in zip(few.samples, many.samples, strict=True):
            assert one.settled == other.settled[:3]
            distances = torch.tensor(one.distances), torch.tensor([row[:3] for row in other.distances])
            torch.testing.assert_close(*distances, rtol=1e-2, atol=0)


def plans_of(bundle: SavedModel, reinjection: float = 1.0) -> list[tuple[str, int, float]]:
    return [(p.way, p.num_steps, p.reinjection) for p in planned_paths(bundle, (4, 1), reinjection)]


def test_only_ways_that_the_model_was_trained_for_are_gone() -> None:
    bundle = tiny_bundle()
    assert plans_of(bundle) == [
        ("deterministic", 1, 0.0),
        ("deterministic", 4, 0.0),
        ("reinjection", 1, 1.0),
        ("reinjection", 4, 1.0),
        ("commitment", 1, 0.0),
        ("commitment", 4, 0.0),
    ]
    headless = only(bundle, "autoencoder", "readout", "denoiser")
    assert {way for way, _, _ in plans_of(headless)} == {"deterministic", "reinjection"}
    ends = with_identity(bundle, objective="ends", estimate="endpoint")
    assert plans_of(ends) == [
        ("deterministic", 1, 0.0),
        ("reinjection", 1, 1.0),
        ("reinjection", 4, 1.0),
        ("commitment", 1, 0.0),
        ("commitment", 4, 1.0),
    ]
    assert ("reinjection", 4, 0.5) not in plans_of(ends, 0.5)
    two = with_identity(bundle, objective="two", trained_nfe=2)
    assert plans_of(two) == [("deterministic", 2, 0.0), ("reinjection", 2, 1.0), ("commitment", 2, 0.0)]
    made = collect_traces(TextGenerator(ends), num_samples=1, steps=(1, 4))
    assert [(path.way, path.num_steps, path.reinjection) for path in made.paths] == sorted(
        plans_of(ends), key=lambda plan: list(SETTINGS).index(plan[0])
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"steps": ()}, "steps are []"),
        ({"steps": (2, 2)}, "steps are [2, 2]"),
        ({"steps": (0, 2)}, "steps are [0, 2]"),
        ({"reinjection": 0.0}, "strength is 0.0"),
        ({"reinjection": 1.5}, "strength is 1.5"),
    ],
)
def test_numbers_out_of_range_are_told(arguments: dict, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        collect_traces(TextGenerator(tiny_bundle()), **arguments)


def test_a_model_without_readout_is_told() -> None:
    with pytest.raises(UserError, match="no readout"):
        collect_traces(TextGenerator(only(tiny_bundle(), "autoencoder", "denoiser")))


def test_progress_hears_of_every_way_and_number_of_steps() -> None:
    heard: list[tuple[int, int, str]] = []
    headless = only(tiny_bundle(), "autoencoder", "readout", "denoiser")
    collect_traces(TextGenerator(headless), num_samples=1, steps=(1, 2), progress=lambda *call: heard.append(call))
    assert [done for done, _, _ in heard] == [0, 1, 2, 3, 4]
    assert {total for _, total, _ in heard} == {4}
    assert heard[1][2] == "deterministic, 2 steps"


def test_json_keeps_everything(generator_and_traces: tuple[TextGenerator, Traces]) -> None:
    traces = generator_and_traces[1]
    infinite = SampleTrace(((0, 0),), ((None, 1.5),), (1, 1))
    path = TracePath("deterministic", 1, 0.0, (0.0, 1.0), (infinite,) * traces.num_samples)
    for one in (traces, Traces("m", 0, traces.num_samples, 2, 9, ("a",), (7,), (path,))):
        assert Traces.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one


def test_six_samples_of_32_tokens_and_up_to_16_steps_stay_under_300_kilobytes() -> None:
    """With the longest entries there are: four digits a token, all three digits a distance."""
    rows = {n: ((1999,) * 32,) * n for n in (1, 2, 4, 8, 16)}
    close = {n: ((0.0123,) * 32,) * n for n in rows}
    paths = tuple(
        TracePath(way, n, 0.0, (0.1234,) * (n + 1), (SampleTrace(rows[n], close[n], (n,) * 32),) * 6)
        for way in SETTINGS
        for n in rows
    )
    full = Traces("0" * 12, 0, 6, 32, 32, ("12345678",) * 2000, (12345,) * 2000, paths)
    assert len(json.dumps(full.to_dict(), separators=(",", ":"))) < 300_000


BREAKAGES = {
    "no paths": (lambda v: v.pop("paths"), KeyError),
    "not one path": (lambda v: v["paths"].clear(), ValueError),
    "texts that are numbers": (lambda v: v.update(vocabulary=[1] * len(v["vocabulary"])), ValueError),
    "a text too few": (lambda v: v["vocabulary"].pop(), ValueError),
    "another way": (lambda v: v["paths"][0].update(way="sideways"), ValueError),
    "a time too few": (lambda v: v["paths"][0]["times"].pop(), ValueError),
    "a sample too few": (lambda v: v["paths"][0]["samples"].pop(), ValueError),
    "a token beyond the vocabulary": (
        lambda v: v["paths"][0]["samples"][0]["tokens"][0].__setitem__(0, len(v["vocabulary"])),
        ValueError,
    ),
    "a row too few": (lambda v: v["paths"][1]["samples"][0]["tokens"].pop(), ValueError),
    "a distance too few": (lambda v: v["paths"][0]["samples"][0]["distances"][0].pop(), ValueError),
    "a step beyond the last": (lambda v: v["paths"][0]["samples"][0]["settled"].__setitem__(0, 2), ValueError),
    "a distance that is a text": (
        lambda v: v["paths"][0]["samples"][0]["distances"][0].__setitem__(0, "1.5"),
        ValueError,
    ),
    "a distance that is no number": (
        lambda v: v["paths"][0]["samples"][0]["distances"][0].__setitem__(0, float("nan")),
        ValueError,
    ),
    "rows of another length": (lambda v: v.update(num_tokens=4), ValueError),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_values_are_refused(generator_and_traces: tuple[TextGenerator, Traces], breakage: str) -> None:
    values = json.loads(json.dumps(generator_and_traces[1].to_dict()))
    change, error = BREAKAGES[breakage]
    change(values)
    with pytest.raises(error):
        Traces.from_dict(values)
