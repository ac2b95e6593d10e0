"""A sweep that is killed at any moment loses no row, doubles none, and says where it found half a one."""

import json
import random
import time
from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.cli.forked import start_command
from tests.cli.shops import evaluation, make_shop, rows_in, timeless


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
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if file.exists() and file.stat().st_size != size:
            time.sleep(delay)
            process.kill()
            break
        time.sleep(0.0005)
    process.join(120)
    assert process.exitcode in (-9, 0), log.read_text()
    return process.exitcode == -9


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
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


def test_a_last_line_that_was_cut_off_is_said_and_made_again(
    shop: Path, whole: list[dict[str, object]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (shop / "whole" / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    assert main(evaluation(shop, tmp_path)) == 0
    assert "the last line was cut off after 40 bytes; its row is measured again" in caplog.text
    assert [timeless(row) for row in rows_in(tmp_path / "rows.jsonl")] == [timeless(row) for row in whole]
    caplog.clear()
    assert main(evaluation(shop, tmp_path)) == 0
    assert "cut off" not in caplog.text


def test_a_row_that_stands_twice_is_refused_and_not_shown_twice(
    shop: Path, whole: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (shop / "whole" / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join([*lines, lines[4]]))
    assert main(evaluation(shop, tmp_path)) == 2
    assert "twice: take one out by hand" in capsys.readouterr().err
