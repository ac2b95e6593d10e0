"""A sweep that is killed at any moment loses no row, doubles none, and says where it found half a one."""

import json
import random
import time
from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.cli.shops import evaluation, rows_in, timeless
from tests.forked import kill_when, start_command


def kill_after(arguments: list[str], file: Path, log: Path, delay: float) -> bool:
    """Start the sweep and SIGKILL it ``delay`` seconds after its file changed; whether that came before its end."""
    size = file.stat().st_size if file.exists() else 0
    process = start_command(arguments, log)

    def has_grown() -> bool:
        grown = file.exists() and file.stat().st_size != size
        time.sleep(delay if grown else 0)
        return grown

    killed = kill_when(process, has_grown)
    assert killed or process.exitcode == 0, log.read_text()
    return killed


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_whole_rows_and_the_sweep_goes_on(
    shop: Path, whole: Path, tmp_path: Path, kills: int
) -> None:
    draw, done, expected = random.Random(kills), 0, rows_in(whole / "rows.jsonl")
    for attempt in range(10 * kills):
        out = tmp_path / f"out_{attempt}"  # a finished one is checked, and the next begins anew
        killed = True
        while killed and done < kills:
            killed = kill_after(evaluation(shop, out), out / "rows.jsonl", tmp_path / "log", draw.uniform(0, 0.2))
            done += killed
            # Every line but a torn last one is a row, and a kill never costs one that was there.
            lines = (out / "rows.jsonl").read_bytes().split(b"\n")[:-1]
            assert [json.loads(line)["setting"] for line in lines] == [r["setting"] for r in expected[: len(lines)]]
        assert main(evaluation(shop, out)) == 0
        assert list(map(timeless, rows_in(out / "rows.jsonl"))) == list(map(timeless, expected))
        if done == kills:
            return
    pytest.fail(f"only {done} of {kills} kills came before the end")
