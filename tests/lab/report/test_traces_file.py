"""The traces of a run are made once, kept, and made anew when the model or what is asked for is another."""

import json
import re
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.lab.report.traces import Traces, collect_traces
from fewstep.lab.report.traces_file import read_traces, traces_of_run
from fewstep.pipeline import TextGenerator
from tests.bundles import only, tiny_bundle
from tests.lab.images.models import tiny_image_model


def of_run(
    run: Path, seed: int = 0, num_samples: int = 2, steps: tuple[int, ...] = (1, 2), max_tokens: int = 64
) -> Traces | None:
    return traces_of_run(run, num_samples=num_samples, steps=steps, max_tokens=max_tokens, seed=seed)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tiny_bundle().save_pretrained(tmp_path / "model")
    return tmp_path


def mark(run: Path) -> Traces:
    """Change a text in the kept file, so that it shows who made what comes next."""
    values = json.loads((run / "traces.json").read_text())
    values["vocabulary"][0] = "kept"
    (run / "traces.json").write_text(json.dumps(values))
    return Traces.from_dict(values)


def test_a_run_is_traced_once_and_the_file_holds_what_was_given(run: Path) -> None:
    made = of_run(run)
    assert made == collect_traces(TextGenerator.from_pretrained(run / "model"), num_samples=2, steps=(1, 2))
    assert read_traces(run / "traces.json") == made
    assert [file.name for file in run.iterdir() if file.is_file()] == ["traces.json"]
    marked = mark(run)
    assert marked != made
    assert of_run(run) == marked


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_samples": 3}, {"steps": (1, 3)}, {"max_tokens": 3}])
def test_other_numbers_make_other_traces(run: Path, change: dict) -> None:
    of_run(run)
    mark(run)
    made = of_run(run, **change)
    assert made is not None
    assert "kept" not in made.vocabulary
    assert read_traces(run / "traces.json") == made


def test_another_model_makes_other_traces(run: Path) -> None:
    of_run(run)
    marked = mark(run)
    tiny_bundle(seed=1).save_pretrained(run / "model", overwrite=True)
    made = of_run(run)
    assert made is not None
    assert made.model != marked.model
    assert "kept" not in made.vocabulary


def test_without_a_model_the_file_is_taken_as_it_is(run: Path, tmp_path: Path) -> None:
    made = of_run(run)
    (run / "model").rename(tmp_path / "away")
    assert of_run(run, seed=3) == made
    (run / "traces.json").unlink()
    assert of_run(run) is None


def test_models_that_make_no_text_have_no_traces(tmp_path: Path) -> None:
    only(tiny_bundle(), "autoencoder", "readout").save_pretrained(tmp_path / "first" / "model")
    tiny_image_model().save_pretrained(tmp_path / "second" / "model")
    for name in ("first", "second"):
        assert of_run(tmp_path / name) is None
        assert not (tmp_path / name / "traces.json").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "holds no traces"),
        ("[]", "expected an object, not list"),
        ("{}", "has no 'vocabulary'"),
        ('{"vocabulary": ["a"], "token_ids": []}', "one of token_ids each"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(run: Path, text: str, said: str) -> None:
    (run / "traces.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        of_run(run)
    assert str(run / "traces.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (run / "traces.json").read_text() == text


def test_a_place_that_cannot_be_written_is_one_line_and_nothing_is_left(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewstep.lab.report.traces_file.os.replace", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        of_run(run)
    assert str(run / "traces.json") in str(caught.value)
    assert [file.name for file in run.iterdir()] == ["model"]
    (run / "traces.json").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        of_run(run)
