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
    """No variable of wandb's from outside, and its process, which remembers them, started again for each test."""
    # First: monkeypatch would later restore the address of a process that has ended, and wandb would connect to it.
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_MODE"]:
        monkeypatch.delenv(name)
    yield
    wandb.teardown()


def records_of(folder: Path) -> list[Record]:
    """Records of the only offline run in a folder, in LevelDB's log format: blocks of 32 KiB with records of checksum
    (4 bytes), length (2), kind (1: whole, 2, 3 and 4: first, middle and last part) and data."""
    wandb.teardown()  # ends wandb's own process, which writes its files
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, records, parts = file.read_bytes(), [], b""
    place = 7  # bytes of file header
    while place + 7 <= len(data):
        if (left := -place % 32768) and left < 7:  # no header fits into the rest of a block
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(Record())
            records[-1].ParseFromString(parts)
            parts = b""
    return records


def run_of(folder: Path) -> Any:
    """How the only offline run in a folder was started."""
    return next(record.run for record in records_of(folder) if record.WhichOneof("record_type") == "run")


def history_of(folder: Path) -> list[dict[str, Any]]:
    """What the only offline run in a folder logged."""
    rows = [record.history.item for record in records_of(folder) if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: item.value_json for item in row} for row in rows]


def test_an_offline_run_holds_the_curves_the_samples_and_the_settings(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(workshop.arguments("flow", f"--run_dir={tmp_path}", steps=4)) == 0
    rows, csv = history_of(tmp_path), logged(tmp_path)
    for name in ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second", "val/loss"):
        values = [json.loads(row[name]) for row in rows if name in row]
        assert values == pytest.approx(list(csv[name].values()))
    settings = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in records_of(tmp_path)
        for item in [*record.run.config.update, *record.config.update]
    }
    assert settings["data"]["init_args"]["batch_size"] == BATCH_SIZE
    sizes = [json.loads(row["samples/nrows"]) for row in rows if "samples/nrows" in row]
    assert sizes == [12, 24], "samples of 1, 4 and 32 steps, 4 each, a validation"
    paths = [json.loads(row["samples/path"]) for row in rows if "samples/path" in row]
    table = json.loads((next(tmp_path.glob("wandb/offline-run-*/files")) / paths[-1]).read_text())
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


def test_the_environment_decides_what_the_settings_do_not(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"MODE": "OFFLINE", "PROJECT": "mine", "NAME": "first", "ENTITY": "lab", "RUN_GROUP": "all", "TAGS": "a,b"}
    for name, value in {**names, "DIR": str(tmp_path / "elsewhere")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    (tmp_path / "elsewhere").mkdir()
    run_dir = tmp_path / "run"
    assert main(workshop.arguments("language_model", f"--run_dir={run_dir}", steps=2)) == 0
    run = run_of(tmp_path / "elsewhere")
    assert (run.project, run.display_name, run.entity, run.run_group) == ("mine", "first", "lab", "all")
    assert list(run.tags) == ["a", "b"] and not list(run_dir.glob("wandb"))
    own = ["--trainer.logger=WandbLogger", "--trainer.logger.project=line", f"--trainer.logger.save_dir={tmp_path}"]
    assert main(workshop.arguments("language_model", f"--run_dir={run_dir}", "--overwrite", *own, steps=2)) == 0
    run = run_of(tmp_path)
    assert (run.project, run.display_name) == ("line", "first"), "the line wins over the environment"


def test_an_unknown_mode_is_one_line(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    capsys.readouterr()
    assert commands.main(["train", *workshop.arguments("language_model", f"--run_dir={tmp_path / 'run'}")]) == 2
    assert "WANDB_MODE is 'sometimes'" in capsys.readouterr().err and not (tmp_path / "run").exists()


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
    mine.log({"still": "open"})
    mine.finish()
    assert all(any("train/loss" in row for row in history_of(tmp_path / f"run_{number}")) for number in (0, 1))
    assert [set(row) - {"_step", "_runtime", "_timestamp"} for row in history_of(tmp_path / "mine")] == [{"still"}]


def test_a_command_of_an_agent_takes_the_run_of_the_sweep(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the ``wandb agent`` command starts its program: values as flags, the run in the environment."""
    for name, value in {"MODE": "offline", "SWEEP_ID": "sweep", "RUN_ID": "third", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    flags = [f"--run_dir={tmp_path / 'run'}", "--model.optimizer.learning_rate=0.003"]
    assert main(workshop.arguments("language_model", *flags, steps=2)) == 0
    run = run_of(tmp_path)
    assert (run.run_id, run.sweep_id) == ("third", "sweep")
