"""A sweep that is killed at any moment loses no row, doubles none, and says where it found half a one."""

import json
import random
import time
from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.cli.shops import evaluation, make_shop, rows_in, timeless
from tests.forked import kill_when, start_command


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def whole(shop: Path) -> list[dict[str, object]]:
    """The rows of a sweep that nobody stopped."""
    assert main(evaluation(shop, shop / "whole")) == 0
    return rows_in(shop / "whole" / "rows.jsonl")


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
    shop: Path, whole: list[dict[str, object]], tmp_path: Path, kills: int
) -> None:
    draw, done = random.Random(kills), 0
    for attempt in range(10 * kills):
        out = tmp_path / f"out_{attempt}"  # a finished one is checked, and the next begins anew
        while done < kills:
            killed = kill_after(evaluation(shop, out), out / "rows.jsonl", tmp_path / "log", draw.uniform(0, 0.2))
            done += killed
            # Every line but a torn last one is a row, and a kill never costs one that was there.
            lines = (out / "rows.jsonl").read_bytes().split(b"\n")[:-1]
            assert [json.loads(line)["setting"] for line in lines] == [row["setting"] for row in whole[: len(lines)]]
            if not killed:
                break
        assert main(evaluation(shop, out)) == 0
        assert [timeless(row) for row in rows_in(out / "rows.jsonl")] == [timeless(row) for row in whole]
        if done == kills:
            return
    pytest.fail(f"only {done} of {kills} kills came before the end")
