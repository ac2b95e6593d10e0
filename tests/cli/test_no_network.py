"""No command calls anywhere that its user did not name, but for the text of a quickstart: every socket is forbidden."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cli.shops import diagnosis, evaluation, make_shop
from tests.runs import ROOT, Workshop

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


def commands(workshop: Workshop, tmp_path: Path) -> list[list[str]]:
    """One of each command that trains or uses a model."""
    shop = make_shop(tmp_path)
    few = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "2"]
    return [
        ["train", *workshop.arguments("flow", f"--run_dir={tmp_path / 'run'}", steps=2)],
        ["sample", str(tmp_path / "model"), "--device", "cpu", "--output", str(tmp_path / "samples.jsonl")],
        evaluation(shop, tmp_path / "evaluation", *few),
        diagnosis(shop, tmp_path / "diagnosis"),
        ["theory", "--flips", "--effort", "0.01", "--out", str(tmp_path / "theory")],
        ["convert", str(tmp_path / "model"), str(tmp_path / "converted")],
    ]


def test_nobody_is_called(workshop: Workshop, tmp_path: Path) -> None:

    given = commands(workshop, tmp_path)
    # The suite's own offline switch is taken away: nothing may need it.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(given)],
        env={**environment, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr.splitlines()[-1])
    assert told == {"codes": [0] * len(given), "asked": []}
