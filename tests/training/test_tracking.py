"""What wandb and the CSV keep of a run."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from fewstep.cli import main as commands
from fewstep.training.command import main
from tests.runs import BATCH_SIZE, Workshop, logged


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of wandb's from outside, and its process, which remembers them, anew for each test."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_MODE"]:
        monkeypatch.delenv(name)
    wandb.teardown()
    yield
    wandb.teardown()


EXPECTED = ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second", "val/loss")


def wandb_records(file: Path) -> Iterator[Record]:
    """Records of an offline run. They lie one after another in blocks of 32 KiB, in LevelDB's log format: checksum (4
    bytes), length (2), kind (1: whole, 2, 3 and 4: first, middle and last part), then the data.

    wandb's own process writes the file, so this ends that process first.
    """
    wandb.teardown()
    yield from records_in(file.read_bytes())


def records_in(data: bytes) -> Iterator[Record]:
    """The records in the bytes of a run's file."""
    place, parts = 7, b""  # 7 bytes of file header
    while place + 7 <= len(data):
        if (left := -place % 32768) and left < 7:  # no header fits into the rest of a block
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_rows(run_dir: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History rows and settings of the only offline run in a folder."""
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            rows.append({})
            for item in record.history.item:
                put(rows[-1], item)
        for item in [*record.run.config.update, *record.config.update]:
            put(settings, item)
    return rows, settings


def put(values: dict[str, Any], item: Any) -> None:
    """Place an item at its key, which may lead through nested dictionaries."""
    *above, last = item.nested_key or [item.key]
    for key in above:
        values = values.setdefault(key, {})
    values[last] = json.loads(item.value_json)


def test_an_offline_run_holds_the_curves_the_samples_and_the_settings(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(workshop.arguments("flow", f"--run_dir={tmp_path}", steps=4)) == 0
    rows, settings = wandb_rows(tmp_path)
    csv = logged(tmp_path)
    for name in EXPECTED:
        values = [row[name] for row in rows if name in row]
        assert values == pytest.approx(list(csv[name].values()))
    assert settings["data"]["init_args"]["batch_size"] == BATCH_SIZE
    tables = [row["samples"] for row in rows if "samples" in row]
    assert [table["nrows"] for table in tables] == [12, 24], "samples of 1, 4 and 32 steps, 4 each, a validation"
    media = next(tmp_path.glob("wandb/offline-run-*/files")) / tables[-1]["path"]
    table = json.loads(media.read_text())
    assert table["columns"] == ["step", "num_steps", "text"]
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert table["data"] == [[line["step"], line["num_steps"], line["text"]] for line in lines]


@pytest.mark.parametrize(
    ("variables", "count"),
    [({}, 1), ({"MODE": "disabled"}, 0), ({"DISABLED": "1", "MODE": "offline"}, 0), ({"MODE": "Disabled"}, 0)],
)
def test_without_a_key_a_run_is_offline_and_disabled_leaves_nothing(
    variables: dict[str, str], count: int, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert main(workshop.arguments("language_model", f"--run_dir={tmp_path / 'run'}", steps=2)) == 0
    assert len(list(tmp_path.glob("run/wandb/offline-run-*"))) == count
    assert bool(list(tmp_path.rglob("wandb"))) == bool(count)
    assert len(logged(tmp_path / "run")["train/loss"]) == 2


def only_run(folder: Path) -> tuple[Path, Record]:
    """The file of the only offline run in a folder, and its record of how it was started."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    return file, next(record.run for record in wandb_records(file) if record.WhichOneof("record_type") == "run")


def test_the_environment_decides_what_the_settings_do_not(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"MODE": "OFFLINE", "PROJECT": "mine", "NAME": "first", "ENTITY": "lab", "RUN_GROUP": "all", "TAGS": "a,b"}
    for name, value in {**names, "DIR": str(tmp_path / "elsewhere")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    (tmp_path / "elsewhere").mkdir()
    run_dir = tmp_path / "run"
    assert main(workshop.arguments("language_model", f"--run_dir={run_dir}", steps=2)) == 0
    _, run = only_run(tmp_path / "elsewhere")
    assert (run.project, run.display_name, run.entity, run.run_group) == ("mine", "first", "lab", "all")
    assert list(run.tags) == ["a", "b"]
    assert not list(run_dir.glob("wandb"))
    own = ["--trainer.logger=WandbLogger", "--trainer.logger.project=line", f"--trainer.logger.save_dir={tmp_path}"]
    assert main(workshop.arguments("language_model", f"--run_dir={run_dir}", "--overwrite", *own, steps=2)) == 0
    _, run = only_run(tmp_path)
    assert (run.project, run.display_name) == ("line", "first"), "the line wins over the environment"


def test_an_unknown_mode_is_one_line(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    capsys.readouterr()
    assert commands.main(["train", *workshop.arguments("language_model", f"--run_dir={tmp_path / 'run'}")]) == 2
    assert "WANDB_MODE is 'sometimes'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_the_user_has_open_is_neither_logged_into_nor_finished(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "mine").mkdir()
    mine = wandb.init(project="mine", dir=tmp_path / "mine", settings=wandb.Settings(silent=True))
    for number, logger in enumerate(([], ["--trainer.logger=WandbLogger"])):
        run_dir = tmp_path / f"run_{number}"
        arguments = ["train", *workshop.arguments("language_model", f"--run_dir={run_dir}", *logger, steps=2)]
        assert commands.main([*arguments, "--trainer.max_steps=0"]) == 2
        assert commands.main(arguments) == 0
        assert wandb.run is mine
        assert any("train/loss" in row for row in wandb_rows_without_teardown(run_dir))
    mine.log({"still": "open"})
    mine.finish()
    rows, _ = wandb_rows(tmp_path / "mine")
    assert [set(row) - {"_step", "_runtime", "_timestamp"} for row in rows] == [{"still"}]


def wandb_rows_without_teardown(run_dir: Path) -> list[set[str]]:
    """The keys of the history of the only run in a folder, which is finished while others may be open."""
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    records = (record for record in records_in(file.read_bytes()) if record.WhichOneof("record_type") == "history")
    return [{"/".join(item.nested_key) or item.key for item in record.history.item} for record in records]


def test_a_command_of_an_agent_takes_the_run_of_the_sweep(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the ``wandb agent`` command starts its program: values as flags, the run in the environment."""
    for name, value in {"MODE": "offline", "SWEEP_ID": "sweep", "RUN_ID": "third", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    flags = [f"--run_dir={tmp_path / 'run'}", "--model.optimizer.learning_rate=0.003"]
    assert main(workshop.arguments("language_model", *flags, steps=2)) == 0
    _, run = only_run(tmp_path)
    assert (run.run_id, run.sweep_id) == ("third", "sweep")
