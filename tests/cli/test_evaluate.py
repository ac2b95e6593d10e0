"""`fewstep evaluate`: rows, table and pictures, going on where it stopped, several processes, refusals in a line."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
from transformers import GPT2Config, GPT2LMHeadModel

from fewstep.cli.common import comma_rules
from fewstep.cli.main import main
from fewstep.errors import UserError
from fewstep.evaluation.rows import Row, RowFile
from fewstep.evaluation.text_plan import TO_FIRST_END
from tests.bundles import BLOCK_SIZE, only, tiny_bundle, tokenizer, with_identity
from tests.runs import ROOT, write_text

FEW = ["--steps", "1,3", "--reinjection", "0,1", "--readout", "parallel,head", "--samples", "5", "--seeds", "2"]
ONE = ["--matched_entropy", "1"]
YARDSTICKS = ["held-out text", "words shuffled", "unigram draws", "pure noise", "language model"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with its cache, and a model on it."""
    folder = tmp_path_factory.mktemp("shop")
    source = write_text(folder / "text.jsonl")
    with_identity(tiny_bundle(), source=str(source)).save_pretrained(folder / "model")
    return folder


def command(shop: Path, *options: str | Path, path: Path | None = None) -> list[str]:
    """``evaluate`` of the model, or ``path``, in few settings; ``options`` come last."""
    model = shop / "model" if path is None else path
    machine = ["--cache_dir", str(shop / "cache"), "--device", "cpu", "--batch_size", "2", "--cci_examples", "2"]
    return ["evaluate", str(model), *FEW, *ONE, *machine, *map(str, options)]


@pytest.fixture(scope="module")
def whole(shop: Path) -> Path:
    """What one process writes in one go."""
    assert main(command(shop, "--out", shop / "whole")) == 0
    return shop / "whole"


def rows_in(folder: Path) -> list[Row]:
    return RowFile(folder / "rows.jsonl").read()


def timeless(rows: list[Row]) -> list[Row]:
    """Everything that another run must find too."""
    plain = [{name: value for name, value in row.values.items() if "second" not in name} for row in rows]
    return [replace(row, values=v, seconds=None, provenance=None) for row, v in zip(rows, plain, strict=True)]


def test_there_is_a_row_for_each_setting_beside_the_yardsticks_all_of_one_protocol(whole: Path) -> None:
    rows = rows_in(whole)
    flow = [
        ("flow", readout, steps, gamma) for gamma in ("0", "1") for steps in (1, 3) for readout in ("parallel", "head")
    ]
    axes = ("name", "readout", "num_steps", "reinjection")
    found = [tuple(row.setting.get(axis) for axis in axes) for row in rows]
    assert found == [*((name, None, None, None) for name in YARDSTICKS), *flow]
    assert {row.num_samples for row in rows} == {10}
    assert {row.value("scored_tokens") for row in rows[:1] + rows[2:]} == {10 * BLOCK_SIZE}
    assert len({row.protocol_hash for row in rows}) == 1
    assert rows[0].protocol["cci_examples"] == 2
    files = ["pareto_nfe.png", "pareto_seconds.png", "rows.jsonl", "table.csv", "table.md"]
    assert sorted(file.name for file in whole.iterdir()) == files
    table = (whole / "table.md").read_text().splitlines()
    assert table[0].startswith("| text | readout | reinjection | K | NFE | perplexity | 95 % interval | entropy |")
    assert "| rms / data | tokens / s | N |" in table[0]
    assert len(table) == 2 + len(rows) + 2
    assert rows[0].protocol_hash in table[-1]


def test_a_sweep_over_temperatures_adds_a_table_at_real_texts_entropy_and_leaves_the_plain_one(
    shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_bytes((whole / "rows.jsonl").read_bytes())
    few = ["--steps", "3", "--reinjection", "1", "--out", tmp_path, "--matched_entropy", "0.5,1,2"]
    assert main(command(shop, *few)) == 0
    added = [row.setting for row in rows_in(tmp_path)[len(rows_in(whole)) :]]
    assert [(each.get("readout"), each.get("noise_scale"), each.get("temperature")) for each in added] == [
        *((None, None, 0.5), (None, None, 2.0)),
        *(("head", 1.0, 0.5), ("head", 1.0, 2.0), ("parallel", 0.5, None), ("parallel", 2.0, None)),
    ]
    table = (tmp_path / "table.md").read_text()
    plain, matched = table.split("\n| text | readout | reinjection | K | NFE | at temperature |")
    assert set(plain.splitlines()) == set((whole / "table.md").read_text().splitlines())
    names = [line.split(" | ")[0].removeprefix("| ") for line in matched.splitlines()[2:-2]]
    assert names == ["held-out text", "words shuffled", "language model", "flow", "flow"]
    assert "Each setting at the temperature" in capsys.readouterr().out


def test_a_killed_sweep_goes_on_where_it_stopped_and_a_finished_one_makes_nothing(
    shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (whole / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:40])
    assert main(command(shop, "--out", tmp_path)) == 0
    resumed = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    assert resumed[:6] == lines[:6]
    assert timeless(rows_in(tmp_path)) == timeless(rows_in(whole))
    capsys.readouterr()
    monkeypatch.setattr("fewstep.evaluation.texts.FlowTexts.make", None)  # nothing is left to be made
    assert main(command(shop, "--out", tmp_path)) == 0
    assert (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True) == resumed
    out = capsys.readouterr().out
    assert sum(line.startswith(("flow", *YARDSTICKS)) for line in out.splitlines()) == len(lines)
    assert str(tmp_path / "rows.jsonl") in out


def test_a_setting_more_is_added_and_another_protocol_is_refused(
    shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(before)
    options = ["--readout", "head_off", "--reinjection", "0", "linear:1,0.2", "--noise_temperature", "0.9"]
    assert main(command(shop, *options, "--steps", "3", "--out", tmp_path)) == 0
    more = (tmp_path / "rows.jsonl").read_bytes()
    assert more.startswith(before)
    added = rows_in(tmp_path)[len(YARDSTICKS) + 8 :]
    assert [row.setting["reinjection"] for row in added] == ["0", "linear:1,0.2"]
    assert [(row.setting["noise_temperature"], row.value("cci"), row.value("nfe")) for row in added] == [
        (0.9, 0.0, 4)
    ] * 2
    capsys.readouterr()
    assert main(command(shop, "--samples", "4", "--out", tmp_path)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert "num_samples: 5 against 4" in err
    assert "give another --out" in err
    assert (tmp_path / "rows.jsonl").read_bytes() == more


def test_two_processes_write_the_rows_of_one_and_the_first_alone_speaks(
    shop: Path, whole: Path, tmp_path: Path
) -> None:
    processes = start_two(command(shop, "--out", tmp_path))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert timeless(rows_in(tmp_path)) == timeless(rows_in(whole))
    assert "perplexity" in outputs[0][0]
    assert outputs[1][0] == ""


def start_two(arguments: list[str]) -> list[subprocess.Popen[str]]:
    """The command in two processes that know of each other, as ``torchrun`` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    script = "import sys, torch\ntorch.set_num_threads(1)\nfrom fewstep.cli.main import main\nsys.exit(main())"
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**shared, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]


def test_rows_go_to_wandb_when_asked(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "2", "--out", tmp_path]
    assert main(command(shop, *few, "--wandb")) == 0
    assert "nothing logged: WANDB_MODE is disabled" in capsys.readouterr().out
    assert not (tmp_path / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(command(shop, *few)) == 0
    assert not (tmp_path / "wandb").exists()
    assert main(command(shop, *few, "--wandb")) == 0
    wandb.teardown()  # ends wandb's own process, which writes its files
    kinds = {file.suffix for file in (tmp_path / "wandb").rglob("media/**/*") if file.is_file()}
    assert kinds == {".json", ".png"}


def test_lists_of_rules_take_numbers_with_commas_and_rules_with_blanks() -> None:
    assert comma_rules(["0,0.50,1"]) == ["0", "0.5", "1"]
    assert comma_rules(["0,1", "linear:1,0.2", "cosine:1,0"]) == ["0", "1", "linear:1,0.2", "cosine:1,0"]
    assert comma_rules(["elf,by_position"]) == ["elf", "by_position"]
    for wrong, message in ((",", "names nothing"), ("0,2", "between 0"), ("nothing:1", "reinjection is 'nothing:1'")):
        with pytest.raises(UserError, match=message):
            comma_rules([wrong])


def test_controls_and_snap_are_axes_whose_columns_show_where_they_differ(
    shop: Path, whole: Path, tmp_path: Path
) -> None:
    few = ["--steps", "4", "--reinjection", "0.5", "--readout", "parallel", "--out", tmp_path]
    axes = ["--noise", "fresh,reused", "--noise_temperature", "1,0.5", "--snap", "none,last:1"]
    (tmp_path / "rows.jsonl").write_bytes((whole / "rows.jsonl").read_bytes())
    assert main(command(shop, *few, *axes)) == 0
    added = rows_in(tmp_path)[len(rows_in(whole)) :]
    found = [tuple(row.setting[axis] for axis in ("noise_temperature", "noise", "snap")) for row in added]
    assert found == list(product((1.0, 0.5), ("fresh", "reused"), ("none", "last:1")))
    assert [row.value("nfe") for row in added] == [5, 7] * 4
    assert len({row.value("perplexity") for row in added}) == len(added)
    heading, _, *lines = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()[:-2]]
    last = dict(zip(heading, lines[7 + len(YARDSTICKS)], strict=True))
    assert (last["noise"], last["drawn"], last["snap"]) == ("0.5", "reused", "last:1")
    assert not {"noise", "drawn", "snap"} & set((whole / "table.md").read_text().splitlines()[0].split(" | "))


def test_a_model_trained_for_a_number_of_steps_tells_it_before_anything_is_made_and_takes_it(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(shop / "text.jsonl")
    bundle = with_identity(tiny_bundle(), source=source, trained_nfe=3, objective="jumps")
    bundle.save_pretrained(tmp_path / "jumps")
    few = ["--samples", "2", "--reinjection", "0", "--readout", "parallel", "--out", tmp_path / "out"]
    for steps in ("1,3", "2"):
        with monkeypatch.context() as watched:
            watched.setattr("fewstep.cli.common.corpus_of", None)
            assert main(command(shop, *few, "--steps", steps, path=tmp_path / "jumps")) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"--steps {steps}: the objective of this model (jumps) trained it for 3 steps" in err
        assert err.endswith("give --steps 3\n")
    assert main(command(shop, *few, "--steps", "3", path=tmp_path / "jumps")) == 0
    assert [row.setting["num_steps"] for row in rows_in(tmp_path / "out")[-1:]] == [3]


def test_mauve_is_measured_where_it_is_asked_for_against_text_that_is_not_the_rows_own(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    package = ModuleType("mauve")

    def compute_mauve(p_features: np.ndarray, q_features: np.ndarray, **settings: object) -> SimpleNamespace:
        seen.append((p_features, q_features))
        return SimpleNamespace(mauve=len(seen) / 10)

    package.compute_mauve = compute_mauve
    monkeypatch.setitem(sys.modules, "mauve", package)
    few = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "4", "--out", tmp_path]
    assert main(command(shop, *few, "--mauve")) == 0
    assert [row.value("mauve") for row in rows_in(tmp_path)] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    (real, other), *against = seen
    assert {len(features) for pair in seen for features in pair} == {8}
    assert not (real[:, None] == other[None]).all(-1).any()  # no block is compared with itself
    assert all((q == real).all() for _, q in against)
    assert "MAUVE" in (tmp_path / "table.md").read_text().splitlines()[0]


def test_held_out_texts_are_continued_and_filled_in_in_a_folder_of_their_own(shop: Path, tmp_path: Path) -> None:
    few = ["--steps", "2", "--reinjection", "0", "--readout", "parallel,head", "--samples", "3"]
    bundle = with_identity(tiny_bundle(), source=str(shop / "text.jsonl"))
    bundle.save_pretrained(tmp_path / "model")
    for option, written in (("prompt", BLOCK_SIZE - 3), ("infill", 3)):
        arguments = command(shop, *few, f"--{option}_tokens", "3", path=tmp_path / "model")
        assert main(arguments) == 0
        rows = rows_in(tmp_path / f"evaluation_{option}3")
        assert [row.setting["name"] for row in rows] == [*YARDSTICKS[:3], "language model", "flow", "flow"]
        assert {row.value("kept") for row in rows} == {1.0} and rows[0].value("accuracy") == 1
        assert {row.value("tokens_per_sample") for row in rows[2:]} == {written}
        table = (tmp_path / f"evaluation_{option}3" / "table.md").read_text()
        assert "| accuracy | 95 % interval | given kept |" in table and f"given: {rows[0].protocol['given']}" in table


def test_blocks_of_one_document_count_to_their_end(shop: Path, tmp_path: Path) -> None:
    bundle = with_identity(tiny_bundle(), source=str(shop / "text.jsonl"), blocks="documents")
    bundle.save_pretrained(tmp_path / "model")
    few = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "2", "--out", tmp_path]
    assert main(command(shop, *few, "--seeds", "1", path=tmp_path / "model")) == 0
    rows = rows_in(tmp_path)
    assert {row.protocol["end_of_text"] for row in rows} == {TO_FIRST_END}
    assert len(rows) == len(YARDSTICKS) + 1


def test_a_scorer_of_transformers_reads_the_text_itself_and_needs_no_language_model_of_the_run(
    shop: Path, tmp_path: Path
) -> None:
    bundle = with_identity(tiny_bundle(), source=str(shop / "text.jsonl"))
    only(bundle, "autoencoder", "readout", "denoiser").save_pretrained(tmp_path / "flow")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(tokenizer()), n_positions=64, n_embd=16, n_layer=1, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    tokenizer().save_pretrained(tmp_path / "gpt")
    few = ["--steps", "2", "--reinjection", "0", "--readout", "parallel", "--samples", "2", "--out", tmp_path / "out"]
    options = [*few, "--scorer", tmp_path / "gpt", "--scorer_dtype", "bfloat16"]
    assert main(command(shop, *options, path=tmp_path / "flow")) == 0
    rows = rows_in(tmp_path / "out")
    assert [row.setting["name"] for row in rows] == [*YARDSTICKS[:4], "flow"]
    assert {(row.protocol["scorer"]["model"], row.protocol["scorer"]["dtype"]) for row in rows} == {
        ("GPT2LMHeadModel", "bfloat16")
    }
    assert "Perplexity under gpt" in (tmp_path / "out" / "table.md").read_text()
