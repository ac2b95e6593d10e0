"""Terminals that cannot encode, are full, closed or gone: texts are replaced, finished work is never lost."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from fewstep.cli.main import EXIT_BROKEN_PIPE, main
from tests.bundles import tiny_bundle
from tests.cli.shops import diagnosis, evaluation
from tests.runs import Workshop


def test_what_an_ascii_terminal_cannot_show_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_bundle().save_pretrained(tmp_path / "модель")
    command = ["sample", str(tmp_path / "модель"), "--num_samples", "30", "--device", "cpu"]
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    with monkeypatch.context() as patched:
        for name, stream in streams.items():
            patched.setattr(sys, name, stream)
        assert main(command) == 0
        assert main(["sample", str(tmp_path / "нет")]) == 2
    out, err = (stream.buffer.getvalue() for stream in streams.values())
    assert b"?" in out and out.count(b"\n\n") >= 30
    assert b"does not exist" in err
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.encode("ascii", "replace") == out, "elsewhere every character is shown"


def test_a_dash_writes_json_lines_to_standard_output(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--num_samples", "3", "--batch_size", "2", "--device", "cpu"]
    assert main(["sample", str(shop / "model"), *few, "--output", "-"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert not Path("-").exists()


@pytest.mark.parametrize("stream", ["full", "none"])
def test_results_are_written_although_the_terminal_is_lost(
    stream: str, shop: Path, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "2"]
    commands = {
        "evaluation/table.md": evaluation(shop, tmp_path / "evaluation", *few),
        "diagnosis/diagnostics.json": diagnosis(shop, tmp_path / "diagnosis"),
        "run/model/config.json": ["train", *workshop.arguments("autoencoder", f"--run_dir={tmp_path / 'run'}")],
    }
    for result, command in commands.items():
        with monkeypatch.context() as patched:
            for name in ("stdout", "stderr"):
                patched.setattr(sys, name, lost(stream))
            code = main(command)
        assert code == (2 if stream == "full" else 0)
        assert (tmp_path / result).is_file(), result


def test_sampling_to_a_reader_that_left_stops(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = ["--num_samples", "1000000", "--batch_size", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "stdout", lost("gone"))
    assert main(["sample", str(shop / "model"), *endless]) == EXIT_BROKEN_PIPE


def lost(kind: str) -> io.TextIOBase | None:
    """A stream on a full disk, a pipe whose reader left, or none, as Python has it for ``>&-``."""
    if kind == "none":
        return None
    if kind == "full":
        return open("/dev/full", "w")
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    os.close(reader)
    return stream
