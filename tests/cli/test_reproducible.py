"""With every socket forbidden all commands work, and a seed gives in a fresh process what it gives here; provenance."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli.main import main
from fewstep.provenance import provenance
from tests.cli.shops import diagnosis, evaluation, rows_in, timeless
from tests.runs import ROOT, Workshop, logged

SCRIPT = """
import json, socket, sys
asked = []
def forbidden(name):
    def call(*arguments, **options):
        asked.append((name, repr(arguments)))
        raise OSError(101, "Network is unreachable")
    return call
def connect(self, address):
    asked.append(("connect", repr(address)))
    raise OSError(101, "Network is unreachable")
socket.socket.connect = connect
socket.socket.connect_ex = connect
for name in ("create_connection", "getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, forbidden(name))
import torch
torch.set_num_threads(1)
from fewstep.cli.main import main
codes = [main(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps({"codes": codes, "asked": asked}), file=sys.stderr)
"""


FEW = ["--steps", "2", "--reinjection", "1", "--readout", "head", "--samples", "2"]


def commands(shop: Path, place: Path) -> dict[Path, list[str]]:
    """A command of each kind by the file that it writes into ``place``."""
    model = str(shop / "model")
    few = ["--num_samples", "7", "--steps", "3", "--readout", "head", "--reinjection", "0.5", "--device", "cpu"]
    return {
        place / "samples.jsonl": ["sample", model, *few, "--output", str(place / "samples.jsonl")],
        place / "evaluation" / "rows.jsonl": evaluation(shop, place / "evaluation", *FEW),
        place / "diagnosis" / "diagnostics.json": diagnosis(shop, place / "diagnosis"),
        place / "theory" / "flips.json": ["theory", "--flips", "--effort", "0.01", "--out", str(place / "theory")],
    }


def contents(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file, or the one object of a JSON file."""
    return rows_in(file) if file.suffix == ".jsonl" else [json.loads(file.read_text(encoding="utf-8"))]


def test_nobody_is_called_and_a_seed_gives_the_same_in_a_fresh_process_with_its_provenance(
    shop: Path, workshop: Workshop, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
    more = [
        ["train", *workshop.arguments("flow", f"--run_dir={tmp_path / 'run'}", steps=2)],
        ["convert", str(shop / "model"), str(tmp_path / "converted")],
    ]
    given = [*commands(shop, there).values(), *more]
    # The suite's own offline switch is taken away: nothing may need it.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    run = [sys.executable, "-c", SCRIPT, json.dumps(given)]
    done = subprocess.run(run, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == {"codes": [0] * len(given), "asked": []}
    for (file, (name, *arguments)), other in zip(commands(shop, here).items(), commands(shop, there), strict=True):
        assert main([name, *arguments]) == 0
        assert contents(file) and list(map(timeless, contents(file))) == list(map(timeless, contents(other)))
        assert all(row["provenance"] == provenance(name, arguments) for row in contents(file)), name


def test_a_training_depends_neither_on_workers_nor_on_what_is_logged(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {
        "plain": [],
        "workers": ["--data.num_workers=2"],
        "quiet": ["--trainer.logger=false", "--trainer.enable_progress_bar=true"],
    }
    for name, flags in variants.items():
        assert main(["train", *workshop.arguments("flow", f"--run_dir={tmp_path / name}", *flags)]) == 0
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["train", *workshop.arguments("flow", f"--run_dir={tmp_path / 'wandb'}")]) == 0
    weights = {name: (tmp_path / name / "model" / "denoiser.safetensors").read_bytes() for name in [*variants, "wandb"]}
    assert [name for name in weights if weights[name] != weights["plain"]] == []
    assert logged(tmp_path / "workers")["train/loss"] == logged(tmp_path / "plain")["train/loss"]
