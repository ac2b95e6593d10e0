"""What wandb and the CSV keep of a run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from fewstep.cli.train import main
from tests.runs import BATCH_SIZE, BLOCK_SIZE, Workshop, logged

EXPECTED = ("train/loss", "train/learning_rate", "train/grad_norm", "train/tokens_per_second", "val/loss")


def wandb_records(file: Path) -> Iterator[Record]:
    """Records of an offline run. They lie one after another in blocks of 32 KiB, in LevelDB's log format: checksum (4
    bytes), length (2), kind (1: whole, 2, 3 and 4: first, middle and last part), then the data.

    wandb's own process writes the file, so this ends that process first.
    """
    wandb.teardown()
    data, place, parts = file.read_bytes(), 7, b""  # 7 bytes of file header
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


def test_without_a_key_a_run_is_offline_and_disabled_leaves_nothing(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for mode, count in (("", 1), ("disabled", 0)):
        monkeypatch.setenv("WANDB_MODE", mode)
        run_dir = tmp_path / f"mode_{mode}"
        assert main(workshop.arguments("language_model", f"--run_dir={run_dir}", steps=2)) == 0
        assert len(list(run_dir.glob("wandb/offline-run-*"))) == count
        assert not (count == 0 and (run_dir / "wandb").exists())
        assert len(logged(run_dir)["train/loss"]) == 2
    assert not list(Path.cwd().glob("wandb"))


def test_tokens_per_second_counts_tokens_over_time(workshop: Workshop, tmp_path: Path) -> None:
    flags = [f"--run_dir={tmp_path}", "--trainer.log_every_n_steps=5"]
    assert main(workshop.arguments("language_model", *flags, steps=10)) == 0
    rates = logged(tmp_path)["train/tokens_per_second"]
    assert sorted(rates) == [4, 9]
    tokens = 5 * BATCH_SIZE * BLOCK_SIZE
    assert all(tokens / 10 < rate < tokens / 1e-4 for rate in rates.values())
