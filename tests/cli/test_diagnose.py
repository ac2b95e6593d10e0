"""`fewstep diagnose`: its table and files, the same figures every time, and every refusal in one line."""

import io
import json
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset

from fewstep.cli.common import corpus_of, packed_blocks
from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.cli.main import main
from fewstep.cli.output import progress_bar
from fewstep.cli.parser import parse_options
from fewstep.data import CorpusSettings, prepare_corpus
from fewstep.diagnostics.result import Estimate, Result, Row
from fewstep.evaluation.diagnosis import Diagnosis
from fewstep.evaluation.measurements import MEASUREMENTS, Measurement, measure_stiffness
from fewstep.model import SavedModel
from tests.bundles import BLOCK_SIZE, only, tiny_bundle, with_identity, write_checkpoint
from tests.cli.test_evaluate import start_two
from tests.lab.images.models import tiny_image_model
from tests.runs import write_text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with its cache, a model on it, and an image model."""
    folder = tmp_path_factory.mktemp("shop")
    source = write_text(folder / "text.jsonl")
    with_identity(tiny_bundle(), source=str(source)).save_pretrained(folder / "text" / "model")
    tiny_image_model().save_pretrained(folder / "images" / "model")
    validation_of(folder)  # packs it, which shows bars, once
    return folder


def validation_of(shop: Path) -> Dataset:
    """The held-out part of the text, as the model's training cuts it."""
    settings = CorpusSettings(
        source=str(shop / "text.jsonl"),
        tokenizer=str(shop / "text" / "model" / "tokenizer"),
        block_size=BLOCK_SIZE,
        cache_dir=str(shop / "cache"),
    )
    return prepare_corpus(settings).validation


def command(shop: Path, *options: str | Path, path: Path | None = None, examples: str = "3") -> list[str]:
    """``diagnose`` of the text model, or ``path``, on few examples and positions; ``options`` come last."""
    model = shop / "text" / "model" if path is None else path
    few = ["--examples", examples, "--positions", "1", "--cache_dir", str(shop / "cache"), "--device", "cpu"]
    return ["diagnose", str(model), *few, *map(str, options)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_table_is_printed_and_stored_with_its_pictures_and_a_second_run_prints_the_same(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for name in ("one", "two"):
        assert main(command(shop, "--only", " cci, dabi", "--out", tmp_path / name / "inner")) == 0
        printed.append(capsys.readouterr().out)
    table, last = printed[0].split("\n\ntable     ")
    assert table == printed[1].split("\n\ntable     ")[0]
    stored = json.loads((tmp_path / "one" / "inner" / "diagnostics.json").read_text())
    assert str(tmp_path / "one" / "inner" / "diagnostics.json") in last
    assert list(stored["results"]) == ["dabi", "dabi_segment", "dabi_data", "cci", "cci_noise"]
    assert (stored["num_examples"], stored["num_positions"], stored["seed"]) == (3, 1, 0)
    shown = {line.split()[0]: line.split()[1] for line in table.splitlines()[2:-1] if line}
    assert shown == {name: f"{row['value']:.4g}" for name, row in stored["table"].items()}
    written = files(tmp_path / "one" / "inner")
    pictures = {f"pictures/{name}.png" for name in ("dabi", "dabi_segment", "dabi_data", "cci_noise")}
    assert set(written) == {"diagnostics.json", *pictures}
    assert all(written[name].startswith(b"\x89PNG") for name in pictures)
    again = files(tmp_path / "two" / "inner")
    assert {name: written[name] for name in pictures} == {name: again[name] for name in pictures}
    one, other = (json.loads(found["diagnostics.json"]) for found in (written, again))
    assert one.pop("provenance") != other.pop("provenance"), "their commands differ in --out"
    assert one == other


OUTSIDE = """
from fewstep.diagnostics.result import Axes, Result, Row, estimate_series, mean_estimate
from fewstep.evaluation.measurement import Measurement, Threshold

def latent_norm(subject):
    squared, noise = subject.z.square().mean(-1), subject.noise("latent_norm")
    estimates = [mean_estimate(column[:, None], column[:, None] > -1, noise) for column in squared.unbind(1)]
    return Result(
        "latent_norm",
        (Row("latent_norm", mean_estimate(squared, squared > -1, noise), "", "by hand"),),
        {"by_position": estimate_series("by position", range(len(estimates)), estimates)},
        Axes("Norm of the latents", "position", "mean square"),
    )

limit = Threshold("mean square", 1e6, 1e7, False)
judged = Measurement(latent_norm, ("autoencoder",), thresholds={"latent_norm": limit})
of_head = Measurement(latent_norm, ("teacher",))
number = 5
"""


def test_a_measurement_from_outside_the_package_is_measured_stored_drawn_and_reported(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_measures.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    plain, judged = tmp_path / "plain", tmp_path / "judged"
    assert main(command(shop, "--only", "my_measures.latent_norm,boundary_distance", "--out", plain)) == 0
    assert main(command(shop, "--only", "my_measures.judged", "--out", judged)) == 0
    capsys.readouterr()
    first, second = (json.loads((folder / "diagnostics.json").read_text()) for folder in (plain, judged))
    assert list(first["results"]) == ["boundary_distance", "boundary_width", "latent_norm"], "its place is the last"
    assert first["results"]["latent_norm"] == second["results"]["latent_norm"]
    assert (plain / "pictures" / "latent_norm.png").is_file()
    assert main(["report", str(judged), "--traces", "0", "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Norm of the latents" in page and "by hand" in page and "good (mean square: good up to" in page
    for name, message in (
        ("of_head", "needs the part 'teacher'"),
        ("number", "is 5: expected a Measurement"),
        ("no", "no"),
    ):
        assert main(command(shop, "--only", f"my_measures.{name}", "--out", tmp_path / name)) == 2
        assert message in capsys.readouterr().err


def test_a_checkpoint_of_the_flow_stage_is_measured_whole_and_what_it_lacks_is_said(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(measure_stiffness, times=(0.5,), num_iterations=2)
    monkeypatch.setitem(MEASUREMENTS, "stiffness", Measurement(quick, ("denoiser",)))
    bundle = only(tiny_bundle(), "autoencoder", "readout", "denoiser")
    file = write_checkpoint(bundle, tmp_path / "flow.ckpt", "denoiser")
    assert main(command(shop, "--source", shop / "text.jsonl", path=file, examples="2")) == 0
    out, err = capsys.readouterr()
    stored = json.loads((tmp_path / "diagnosis" / "diagnostics.json").read_text())
    lacking = dict.fromkeys(("token_accuracy_head", "dabi_head", "cci", "listening"), "head")
    assert stored["left_out"] == lacking
    for name, part in lacking.items():
        assert f"left out: {name}, since the model has no {part}\n" in out
    assert {"tube", "stiffness", "decidedness", "late_flip_rate", "dabi_generated"} <= set(stored["results"])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["diagnosis", "flow.ckpt"]
    assert "Traceback" not in err


def test_an_image_model_is_told_by_itself_and_has_measurements_of_its_own(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop / "images" / "model"
    assert main(command(shop, "--only", "reconstruction,dabi_worst", path=path)) == 0
    stored = json.loads((shop / "images" / "diagnosis" / "diagnostics.json").read_text())
    assert (stored["kind"], stored["num_examples"]) == ("images", 3)
    assert list(stored["results"]) == ["reconstruction_error", "dabi_worst"]
    pictures = ["dabi_worst.png"]
    assert sorted(file.name for file in (shop / "images" / "diagnosis" / "pictures").iterdir()) == pictures
    assert capsys.readouterr().out.startswith("diagnostic ")
    assert main(command(shop, "--only", "cci", "--overwrite", path=path)) == 2
    err = capsys.readouterr().err
    assert "error: measurement is 'cci': expected one of reconstruction, dabi, dabi_worst, or a dotted path" in err
    assert main(command(shop, "--overwrite", path=path, examples="98")) == 2
    assert "examples is 98: expected a number from 2 to 97" in capsys.readouterr().err
    assert json.loads((shop / "images" / "diagnosis" / "diagnostics.json").read_text()) == stored


def test_an_earlier_diagnosis_is_replaced_only_when_asked_and_by_a_good_one(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--only", "dabi_flip", "--out", tmp_path]
    assert main(command(shop, *options)) == 0
    before = files(tmp_path)
    assert main(command(shop, *options, "--seed", "1")) == 2
    assert main(command(shop, "--only", "sharpness", "--out", tmp_path, "--overwrite")) == 2
    capsys.readouterr()
    assert files(tmp_path) == before
    assert main(command(shop, *options, "--seed", "1", "--overwrite")) == 0
    assert json.loads((tmp_path / "diagnostics.json").read_text())["seed"] == 1
    assert files(tmp_path).keys() == before.keys()
    assert files(tmp_path)["diagnostics.json"] != before["diagnostics.json"]
    assert main(command(shop, "--only", "dabi", "--out", tmp_path, "--overwrite")) == 0  # pictures go with their table
    assert {file for file in files(tmp_path) if "flip" in file} == set()


def test_what_is_no_model_or_lacks_the_part_asked_for_is_one_line(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    only(tiny_bundle(), "autoencoder", "readout").save_pretrained(tmp_path / "early")
    only(tiny_bundle(), "language_model").save_pretrained(tmp_path / "scorer")
    for name, message in (
        ("none", "none does not exist: give a model folder"),
        ("empty", "empty is not a model folder: it has no config.json"),
        ("mine.txt", "mine.txt cannot be read as a checkpoint"),
        ("early", "early, asked for tube, has no denoiser (it holds: autoencoder, readout): train the stage flow"),
        ("scorer", "no autoencoder and no readout"),
    ):
        options = ["--only", "tube", "--source", shop / "text.jsonl"]
        assert main(command(shop, *options, path=tmp_path / name)) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.count("\n") == 1, err
        assert message in err
    assert sorted(item.name for item in tmp_path.iterdir()) == ["early", "empty", "mine.txt", "scorer"]


def test_an_output_folder_that_cannot_take_the_files_is_told_before_the_model_is_read(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").write_text("mine, and no folder")
    assert main(command(shop, "--out", tmp_path, path=tmp_path / "no_model")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "cannot write into" in err
    assert (tmp_path / "pictures").read_text() == "mine, and no folder"


def test_a_diagnosis_that_came_up_meanwhile_is_not_replaced(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "diagnostics.json"
    result = Result("late_flip_rate", (Row("late_flip_rate", Estimate(0.5, None, 1)),))

    def slow(*_: object, **__: object) -> Diagnosis:
        file.write_text("of another run")
        return Diagnosis("text", "a model", (result,), 1, 1, 1, 0, {})

    monkeypatch.setattr("fewstep.evaluation.diagnosis.diagnose", slow)
    assert main(command(shop, "--out", tmp_path)) == 2
    assert "exists already" in capsys.readouterr().err
    assert file.read_text() == "of another run"
    assert main(command(shop, "--out", tmp_path, "--overwrite")) == 0
    assert json.loads(file.read_text())["table"]["late_flip_rate"]["value"] == 0.5


def test_the_text_is_the_held_out_part_of_what_the_model_was_trained_on_spread_evenly(shop: Path) -> None:
    bundle, validation = SavedModel.from_pretrained(shop / "text" / "model"), validation_of(shop)
    # One more than asked for: the last one of a split may hold padding.
    for asked, given in ((3, 4), (10_000, len(validation))):
        options = parse_options("diagnose", DiagnoseOptions, command(shop, examples=str(asked))[1:])
        tokens = packed_blocks(corpus_of(bundle, options), options.examples)
        places = [len(validation) * place // given for place in range(given)]
        assert tokens.ids.tolist() == [list(validation[place]["input_ids"]) for place in places]
        assert bool(tokens.mask[:-1].all())


def test_the_bar_appears_with_the_first_call_and_shows_what_is_measured_and_how_many_are_done() -> None:
    stream = io.StringIO()
    with progress_bar("diagnosing", "measurement", stream) as progress:
        assert not stream.getvalue()
        progress(0, 2, "tube")
        assert "0/2" in stream.getvalue()
        assert "tube" in stream.getvalue()
        progress(2, 2, "")
        assert "2/2" in stream.getvalue()


@pytest.mark.slow
def test_two_processes_share_the_measurements_and_the_first_writes_what_one_does(shop: Path, tmp_path: Path) -> None:
    asked = ["--only", "boundary_distance,late_flips"]
    assert main(command(shop, *asked, "--out", tmp_path / "one")) == 0
    processes = start_two(command(shop, *asked, "--out", tmp_path / "two"))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[1][0] == "", "the first process alone speaks"
    alone, shared = files(tmp_path / "one"), files(tmp_path / "two")
    one, two = (json.loads(found.pop("diagnostics.json")) for found in (alone, shared))
    assert one.pop("provenance") != two.pop("provenance"), "their commands differ in --out"
    assert (shared, two) == (alone, one)
