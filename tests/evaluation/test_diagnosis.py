"""A whole diagnosis: its figures hang on the subject alone, table and JSON say the same, the model stays as it is."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fewstep.diagnostics.result import Estimate, Result, Row
from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import Diagnosis, diagnose, run_all
from fewstep.evaluation.measurement import Measurement
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.evaluation.processes import Processes
from fewstep.model import SavedModel
from tests.bundles import only
from tests.evaluation.subjects import mild_bundle, tiny_subject
from tests.training.threads import together

CHEAP: dict[str, dict[str, Any]] = {
    "dabi_flip": {"num_isotropic": 4},
    "first_failure": {"num_random": 2},
    "cci": {"levels": (0.0, 0.5)},
    "listening": {"levels": (0.0, 0.5)},
    "tube": {"times": (0.1, 0.3, 0.6, 0.9)},
    "stiffness": {"times": (0.2, 0.8), "num_iterations": 2},
    "decidedness": {"num_continuations": 2, "every": 3},
}
OF_TEXT = [name for name, item in MEASUREMENTS.items() if item.kind != "images"]
TEXT_PARTS = ("autoencoder", "readout", "denoiser", "head", "language_model")


@pytest.fixture(scope="module", autouse=True)
def measurements() -> Iterator[None]:
    """All of them, at little cost."""
    cheap = {
        name: replace(one, measure=partial(one.measure, **CHEAP.get(name, {}))) for name, one in MEASUREMENTS.items()
    }
    numbers = {"RADII": (0.1,), "NUM_PROBES": 2, "NUM_ITERATIONS": {"text": 2}}
    with pytest.MonkeyPatch.context() as patch:
        for name, number in numbers.items():
            patch.setattr(f"fewstep.evaluation.measurements.{name}", number)
        for name, one in cheap.items():
            patch.setitem(MEASUREMENTS, name, one)
        yield


def state_of(bundle: SavedModel) -> dict[str, Any]:
    """All that a diagnosis must leave alone."""
    found: dict[str, Any] = {"random numbers": torch.get_rng_state().tolist()}
    for part, module in bundle.parts().items():
        found |= {f"{part}.{name}": value.tolist() for name, value in module.state_dict().items()}
        found |= {
            f"{part}.{name} flags": (value.requires_grad, value.grad) for name, value in module.named_parameters()
        }
        found |= {f"{part}.{name} mode": child.training for name, child in module.named_modules()}
    return found


@pytest.fixture(scope="module")
def bundle() -> SavedModel:
    return mild_bundle()


@pytest.fixture(scope="module")
def watched(bundle: SavedModel, measurements: None) -> tuple[Diagnosis, dict[str, Any], dict[str, Any]]:
    """The whole diagnosis, and the model's state before and after it; some of its weights are frozen."""
    bundle.readout.requires_grad_(False)
    before = state_of(bundle)
    return diagnose(tiny_subject(bundle)), before, state_of(bundle)


@pytest.fixture(scope="module")
def whole(watched: tuple[Diagnosis, dict[str, Any], dict[str, Any]]) -> Diagnosis:
    return watched[0]


def figures(diagnosis: Diagnosis) -> dict[str, Any]:
    return json.loads(diagnosis.to_json())["results"]


def test_measuring_leaves_weights_flags_gradients_modes_and_random_numbers_as_they_were(
    watched: tuple[Diagnosis, dict[str, Any], dict[str, Any]],
) -> None:
    _, before, after = watched
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_every_measurement_is_there_once_in_the_order_of_the_table(whole: Diagnosis) -> None:
    results, rows = list(whole.results), [row.name for row in whole.rows()]
    assert len(set(results)) == len(results) == len(figures(whole))
    assert len(set(rows)) == len(rows) == len(json.loads(whole.to_json())["table"])
    assert results[:4] == ["token_accuracy", "dabi", "dabi_segment", "dabi_data"]
    assert whole.left_out == {}


def test_cci_at_generated_latents_needs_a_flow_and_the_curve_does_not(bundle: SavedModel, whole: Diagnosis) -> None:
    found = diagnose(tiny_subject(only(bundle, "autoencoder", "readout", "head")), only=["cci"])
    assert list(found.results) == ["cci_noise"]
    assert figures(found)["cci_noise"] == figures(whole)["cci_noise"]


@pytest.mark.parametrize("name", OF_TEXT)
def test_alone_with_just_its_parts_and_under_inference_mode_a_measurement_gives_the_figures_of_the_whole(
    bundle: SavedModel, whole: Diagnosis, name: str
) -> None:
    # CCI says more with a denoiser, which it does not need.
    parts = TEXT_PARTS if name == "cci" else ("autoencoder", "readout", *MEASUREMENTS[name].parts)
    with torch.inference_mode():
        alone = figures(diagnose(tiny_subject(only(bundle, *parts)), only=[name]))
    assert alone and alone == {key: value for key, value in figures(whole).items() if key in alone}


def test_other_noise_in_the_same_places_gives_other_figures_in_every_measurement(
    bundle: SavedModel, whole: Diagnosis
) -> None:
    other = diagnose(replace(tiny_subject(bundle), seed=1))
    ours, theirs = figures(whole), figures(other)
    assert other.seed == 1
    drawn = [name for name in theirs if not name.startswith("token_accuracy")]  # which nothing random is in
    assert [name for name in drawn if theirs[name] == ours[name]] == []
    pairs = list(zip(other.rows(), whole.rows(), strict=True))
    assert sum(row.estimate.value != before.estimate.value for row, before in pairs) > len(pairs) / 2


def check_table(diagnosis: Diagnosis) -> None:
    """JSON without NaN and infinity, whose table is what is printed."""
    stored = json.loads(diagnosis.to_json(), parse_constant=lambda text: pytest.fail(f"{text} in JSON"))
    heading, rule, *lines = diagnosis.to_text().splitlines()
    assert set(rule) == {"-"}
    cells = [re.split(r"\s{2,}", line[: heading.index("unit")].strip()) for line in lines if line]
    shown = cells[: len(stored["table"])]
    for (name, row), line in zip(stored["table"].items(), shown, strict=True):
        value = "undetermined" if row["value"] is None else f"{row['value']:.4g}"
        bounds = row["interval"] and f"{row['interval']['low']:.4g} - {row['interval']['high']:.4g}"
        assert line == [name, value, *([bounds] if bounds else [])]


def test_json_holds_what_the_table_shows_and_what_was_measured_on(whole: Diagnosis) -> None:
    check_table(whole)
    stored = json.loads(whole.to_json())
    shared = {name: stored[name] for name in ("kind", "model", "n", "num_examples", "num_positions", "seed")}
    assert shared == {"kind": "text", "model": "a model", "n": 24, "num_examples": 4, "num_positions": 2, "seed": 0}
    assert "4 examples of text, 2 positions in each; latents of n = 24; seed 0." in whole.to_text()


def test_a_model_that_answers_the_same_to_everything_has_a_table_without_nan() -> None:
    bundle = mild_bundle()
    with torch.no_grad():
        for name in ("readout", "denoiser", "head"):
            for parameter in bundle.parts()[name].parameters():
                parameter.zero_()
    found = diagnose(tiny_subject(bundle))
    check_table(found)
    assert "undetermined" in found.to_text()
    assert found.results["dabi"]["dabi"].value is None
    assert found.results["cci"]["cci"].value == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_refused(value: float) -> None:
    result = Result("late_flip_rate", (Row("late_flip_rate", Estimate(value, None, 1)),))
    with pytest.raises(ValueError, match="JSON"):
        Diagnosis("text", "a model", {result.name: result}, 1, 1, 1, 0, {}).to_json()


def test_the_pictures_are_those_of_the_results_that_have_curves(whole: Diagnosis) -> None:
    drawn = {"dabi", "boundary_distance", "noise_robustness", "cci_noise", "listening_noise", "tube", "stiffness"}
    assert drawn | {"decision_step", "decidedness"} <= set(whole.pictures())
    assert all(any(series.x for series in picture.series) for picture in whole.pictures().values())


def test_what_the_model_lacks_the_parts_for_is_left_out_and_said(whole: Diagnosis) -> None:
    bundle = only(mild_bundle(), "autoencoder", "readout")
    found = diagnose(tiny_subject(bundle))
    assert set(found.left_out) == {name for name in OF_TEXT if MEASUREMENTS[name].parts}
    assert figures(found) == {key: value for key, value in figures(whole).items() if key in figures(found)}
    assert "left out: cci, since the model has no head" in found.to_text().splitlines()
    assert json.loads(found.to_json())["left_out"]["tube"] == "denoiser"
    assert whole.left_out == {}


def test_asked_for_by_name_a_missing_part_is_one_line_with_its_stage() -> None:
    subject = tiny_subject(only(mild_bundle(), "autoencoder", "readout"))
    for name, part, stage in (("tube", "denoiser", "flow"), ("cci", "head", "head")):
        with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
            diagnose(replace(subject, name="runs/model"), only=["dabi", name])
        assert f"runs/model, asked for {name}, has no {part} (it holds: autoencoder, readout)" in str(caught.value)
        assert f"train the stage {stage} first" in str(caught.value)


def test_an_unknown_measurement_is_one_line_with_all_that_are_offered() -> None:
    with pytest.raises(UserError, match=f"measurement is 'sharpness': expected one of {', '.join(OF_TEXT)}, or"):
        diagnose(tiny_subject(), only=["dabi", "sharpness", "cci"])


def test_progress_is_told_before_each_measurement_and_at_the_end() -> None:
    seen: list[tuple[int, int, str]] = []
    names = ["late_flips", "boundary_distance"]
    found = diagnose(tiny_subject(), only=names, progress=lambda *news: seen.append(news))
    assert seen == [(0, 2, "boundary_distance"), (1, 2, "late_flips"), (2, 2, "")]
    assert list(found.results) == ["boundary_distance", "boundary_width", "late_flip_rate", "decision_step"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_share_the_measurements_and_all_have_them_in_order(count: int) -> None:
    made: list[tuple[int, int]] = []

    def work(processes: Processes) -> tuple[Any, ...]:
        def measure(place: int, _: object) -> tuple[Result, ...]:
            made.append((processes.rank, place))
            return tuple(Result(f"{place}.{number}") for number in range(place))  # none, one, or several results

        chosen = {f"m{place}": Measurement(partial(measure, place)) for place in range(5)}
        return run_all(chosen, tiny_subject(), "full", None, processes)

    results = together(count, work)
    assert sorted(place for _, place in made) == list(range(5)), "each is made once"
    assert all(rank == place % count for rank, place in made)
    assert results == [tuple(Result(f"{place}.{number}") for place in range(5) for number in range(place))] * count


def test_what_one_process_cannot_measure_is_told_by_all() -> None:
    def refuse(_: object) -> tuple[Any, ...]:
        raise UserError("no scale")

    chosen = {"a": Measurement(lambda _: ()), "b": Measurement(refuse)}
    results = together(2, lambda processes: run_all(chosen, tiny_subject(), "full", None, processes))
    assert all(isinstance(result, UserError) and str(result) == "no scale" for result in results)
