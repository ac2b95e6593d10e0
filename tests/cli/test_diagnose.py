"""`fewstep diagnose`: its table and files, the same figures every time, and every refusal in one line."""

import json
from pathlib import Path

import pytest

from fewstep.cli.common import corpus_of
from fewstep.cli.diagnose import DiagnoseOptions, packed_blocks
from fewstep.cli.main import main
from fewstep.cli.parser import parse_options
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.model import SavedModel
from tests.bundles import only, tiny_bundle, with_identity, write_checkpoint
from tests.cli.test_evaluate import run_two
from tests.lab.images.models import tiny_image_model
from tests.runs import write_text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with its cache, a model on it, and an image model."""
    folder = tmp_path_factory.mktemp("shop")
    model = with_identity(tiny_bundle(), source=str(write_text(folder / "text.jsonl")))
    model.save_pretrained(folder / "text" / "model")
    tiny_image_model().save_pretrained(folder / "images" / "model")
    corpus_of(model, options_of(folder))  # packs it, which shows bars, once
    return folder


def options_of(shop: Path) -> DiagnoseOptions:
    return parse_options("diagnose", DiagnoseOptions, command(shop)[1:])


def command(shop: Path, *options: str | Path, path: Path | None = None, examples: str = "3") -> list[str]:
    """``diagnose`` of the text model, or ``path``, on few examples and positions; ``options`` come last."""
    few = ["--examples", examples, "--positions", "1", "--cache_dir", str(shop / "cache"), "--device", "cpu"]
    return ["diagnose", str(path or shop / "text" / "model"), *few, *map(str, options)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_table_is_printed_and_stored_with_its_pictures_the_same_every_time(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for name in ("one", "two"):
        assert main(command(shop, "--only", " cci, dabi_worst", "--out", tmp_path / name / "inner")) == 0
        printed.append(capsys.readouterr().out)
    table, last = printed[0].split("\n\ntable     ")
    assert table == printed[1].split("\n\ntable     ")[0]
    written, again = (files(tmp_path / name / "inner") for name in ("one", "two"))
    stored, other = (json.loads(found.pop("diagnostics.json")) for found in (written, again))
    assert str(tmp_path / "one" / "inner" / "diagnostics.json") in last
    assert list(stored["results"]) == ["dabi_worst", "cci", "cci_noise"]
    assert (stored["num_examples"], stored["num_positions"], stored["seed"]) == (3, 1, 0)
    shown = {line.split()[0]: line.split()[1] for line in table.splitlines()[2:-1] if line}
    assert shown == {name: f"{row['value']:.4g}" for name, row in stored["table"].items()}
    assert set(written) == {"pictures/dabi_worst.png", "pictures/cci_noise.png"}
    assert all(content.startswith(b"\x89PNG") for content in written.values())
    assert stored.pop("provenance") != other.pop("provenance"), "their commands differ in --out"
    assert (written, stored) == (again, other)


def test_results_of_a_checkpoint_lie_beside_it_and_are_replaced_only_when_asked_and_by_good_ones(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = only(tiny_bundle(), "autoencoder", "readout", "denoiser")
    file = write_checkpoint(bundle, tmp_path / "flow.ckpt", "denoiser")
    options = ["--only", "noise_robustness", "--source", shop / "text.jsonl"]
    assert main(command(shop, *options, path=file)) == 0
    assert sorted(item.name for item in tmp_path.iterdir()) == ["diagnosis", "flow.ckpt"]
    before = files(tmp_path)
    assert main(command(shop, *options, "--seed", "1", path=file)) == 2
    assert main(command(shop, *options[2:], "--only", "sharpness", "--overwrite", path=file)) == 2
    assert main(command(shop, *options[2:], "--only", "cci", "--overwrite", path=file)) == 2
    assert "has no head (it holds: autoencoder, readout, denoiser): train the stage head" in capsys.readouterr().err
    assert files(tmp_path) == before
    assert main(command(shop, *options[2:], "--only", "boundary_distance", "--overwrite", path=file)) == 0
    assert not {name for name in files(tmp_path) if "noise" in name}, "pictures go with their table"


def test_an_image_model_is_told_by_itself_and_has_measurements_of_its_own(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = shop / "images" / "model", shop / "images" / "diagnosis"
    assert main(command(shop, "--only", "reconstruction,dabi_worst", path=path)) == 0
    stored = json.loads((folder / "diagnostics.json").read_text())
    assert (stored["kind"], stored["num_examples"]) == ("images", 3)
    assert list(stored["results"]) == ["reconstruction_error", "dabi_worst"]
    assert [file.name for file in (folder / "pictures").iterdir()] == ["dabi_worst.png"]
    for wrong, message in (
        (command(shop, "--only", "cci", "--overwrite", path=path), "expected one of reconstruction, dabi, dabi_worst"),
        (command(shop, "--overwrite", path=path, examples="98"), "examples is 98: expected a number from 2 to 97"),
    ):
        assert main(wrong) == 2 and message in capsys.readouterr().err
    assert json.loads((folder / "diagnostics.json").read_text()) == stored


def test_the_text_is_the_held_out_part_of_what_the_model_was_trained_on_spread_evenly(shop: Path) -> None:
    corpus = corpus_of(SavedModel.from_pretrained(shop / "text" / "model"), options_of(shop))
    validation = corpus.validation
    # One more than asked for: the last one of a split may hold padding.
    for asked, given in ((3, 4), (10_000, len(validation))):
        tokens = packed_blocks(corpus, asked)
        places = [len(validation) * place // given for place in range(given)]
        assert tokens.ids.tolist() == [list(validation[place]["input_ids"]) for place in places]
        assert bool(tokens.mask[:-1].all())


def test_the_protocol_of_the_paper_measures_all_there_is_and_says_how_much_that_was(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cheap = {name: MEASUREMENTS[name] for name in ("token_accuracy", "reconstruction", "boundary_distance")}
    monkeypatch.setattr("fewstep.evaluation.diagnosis.MEASUREMENTS", cheap)
    text = SavedModel.from_pretrained(shop / "text" / "model")
    whole_blocks = int(packed_blocks(corpus_of(text, options_of(shop)), 512).mask.all(1).sum())
    arguments = ["--cache_dir", str(shop / "cache"), "--device", "cpu", "--protocol", "paper"]
    for name, count, result in (("text", whole_blocks, "token_accuracy"), ("images", 97, "reconstruction_error")):
        assert main(["diagnose", str(shop / name / "model"), *arguments]) == 0
        stored = json.loads((shop / name / "paper" / "diagnostics.json").read_text())
        note = f"protocol paper: {count} examples, the data has no more; it asks for 512"
        assert note in stored["notes"] and note in capsys.readouterr().out.splitlines()
        assert stored["table"][result]["num_examples"] == count
        assert (stored["protocol"]["name"], stored["protocol"]["effort"]) == ("paper", "full")


@pytest.mark.slow
def test_two_processes_share_the_measurements_and_the_first_writes_what_one_does(shop: Path, tmp_path: Path) -> None:
    asked = ["--only", "boundary_distance,late_flips"]
    assert main(command(shop, *asked, "--out", tmp_path / "one")) == 0
    assert run_two(command(shop, *asked, "--out", tmp_path / "two"))[1] == "", "the first process alone speaks"
    alone, shared = files(tmp_path / "one"), files(tmp_path / "two")
    one, two = (json.loads(found.pop("diagnostics.json")) for found in (alone, shared))
    assert one.pop("provenance") != two.pop("provenance"), "their commands differ in --out"
    assert (shared, two) == (alone, one)
