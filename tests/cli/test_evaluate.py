"""`fewstep evaluate`: rows, table and pictures, going on where it stopped, several processes, refusals in a line."""

import json
import os
import socket
import subprocess
import sys
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
from tests.bundles import BLOCK_SIZE, only, tiny_bundle, tokenizer, with_identity
from tests.cli import shops
from tests.cli.shops import evaluation
from tests.runs import ROOT

YARDSTICKS = [
    "held-out text",
    "words shuffled",
    "unigram draws",
    "pure noise",
    "held-out text read back",
    "language model",
]
ONE = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "2"]


def rows_in(folder: Path) -> list[Row]:
    return RowFile(folder / "rows.jsonl").read()


def timeless(folder: Path) -> list[dict[str, object]]:
    return list(map(shops.timeless, shops.rows_in(folder / "rows.jsonl")))


def test_there_is_a_row_for_each_setting_beside_the_yardsticks_all_of_one_protocol(whole: Path) -> None:
    rows = rows_in(whole)
    flow = [("flow", readout, k, gamma) for gamma in "01" for k in (1, 3) for readout in ("parallel", "head")]
    axes = ("name", "readout", "num_steps", "reinjection")
    settings = [tuple(row.setting.get(axis) for axis in axes) for row in rows]
    assert settings == [*((name, None, None, None) for name in YARDSTICKS), *flow]
    assert {row.num_samples for row in rows} == {10}
    assert {row.value("scored_tokens") for row in rows[:1] + rows[2:]} == {10 * BLOCK_SIZE}
    assert len({row.protocol_hash for row in rows}) == 1
    assert rows[0].protocol["cci_examples"] == 2
    files = ["pareto_nfe.png", "pareto_seconds.png", "rows.jsonl", "table.csv", "table.md"]
    assert sorted(file.name for file in whole.glob("[!.]*")) == files
    table = (whole / "table.md").read_text().splitlines()
    assert table[0].startswith("| text | readout | reinjection | K | NFE | perplexity | 95 % interval | entropy |")
    assert len(table) == 2 + len(rows) + 2 and rows[0].protocol_hash in table[-1]


def test_a_sweep_over_temperatures_adds_a_table_at_real_texts_entropy_and_leaves_the_plain_one(
    shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_bytes((whole / "rows.jsonl").read_bytes())
    assert main(evaluation(shop, tmp_path, "--steps", "3", "--reinjection", "1", "--matched_entropy", "0.5,1,2")) == 0
    added = [row.setting for row in rows_in(tmp_path)[len(rows_in(whole)) :]]
    assert [(each.get("readout"), each.get("noise_scale"), each.get("temperature")) for each in added] == [
        *((None, None, 0.5), (None, None, 2.0)),
        *(("head", 1.0, 0.5), ("head", 1.0, 2.0), ("parallel", 0.5, None), ("parallel", 2.0, None)),
    ]
    table = (tmp_path / "table.md").read_text()
    plain, matched = table.split("\n| text | readout | reinjection | K | NFE | at temperature |")
    assert set(plain.splitlines()) == set((whole / "table.md").read_text().splitlines())
    names = [line.split(" | ")[0].removeprefix("| ") for line in matched.splitlines()[2:-2]]
    assert names == ["held-out text", "words shuffled", YARDSTICKS[4], "language model", "flow", "flow"]
    assert "Each setting at the temperature" in capsys.readouterr().out


def test_a_finished_sweep_makes_nothing_and_a_torn_last_line_is_made_again(
    shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (whole / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:40])
    assert main(evaluation(shop, tmp_path)) == 0
    resumed = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    assert resumed[:6] == lines[:6] and timeless(tmp_path) == timeless(whole)
    capsys.readouterr()
    monkeypatch.setattr("fewstep.evaluation.texts.FlowTexts.make", None)  # nothing is left to be made
    assert main(evaluation(shop, tmp_path)) == 0
    assert (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True) == resumed
    out = capsys.readouterr().out
    assert sum(line.startswith(("flow", *YARDSTICKS)) for line in out.splitlines()) == len(lines)


def test_a_setting_more_is_added_to_rows_of_another_machine_and_another_protocol_is_refused(
    shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = shops.rows_in(whole / "rows.jsonl")
    rows[0]["provenance"] = {"commit": "0" * 40, "hardware": {"processor": "abacus"}}
    del rows[1]["provenance"]  # as it was before rows carried it
    before = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "rows.jsonl").write_bytes(before)
    options = ["--readout", "head_off", "--reinjection", "0", "linear:1,0.2", "--noise_temperature", "0.9"]
    assert main(evaluation(shop, tmp_path, *options, "--steps", "3")) == 0
    more = (tmp_path / "rows.jsonl").read_bytes()
    assert more.startswith(before)
    added = rows_in(tmp_path)[len(rows) :]
    assert len({row.protocol_hash for row in rows_in(tmp_path)}) == 1
    assert [row.setting["reinjection"] for row in added] == ["0", "linear:1,0.2"]
    assert {(row.setting["noise_temperature"], row.value("cci"), row.value("nfe")) for row in added} == {(0.9, 0.0, 4)}
    capsys.readouterr()
    assert main(evaluation(shop, tmp_path, "--samples", "4")) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "num_samples: 5 against 4" in err and "give another --out" in err
    assert (tmp_path / "rows.jsonl").read_bytes() == more


def test_two_processes_write_the_rows_of_one_and_the_first_alone_speaks(
    shop: Path, whole: Path, tmp_path: Path
) -> None:
    first, second = run_two(evaluation(shop, tmp_path))
    assert timeless(tmp_path) == timeless(whole)
    assert "perplexity" in first and second == ""


def run_two(arguments: list[str]) -> list[str]:
    """What two processes print that run the command together, as ``torchrun`` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {**os.environ, "MASTER_PORT": str(free.getsockname()[1]), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    script = "import sys, torch\ntorch.set_num_threads(1)\nfrom fewstep.cli.main import main\nsys.exit(main())"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [out for out, _ in outputs]


def test_rows_go_to_wandb_when_asked(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluation(shop, tmp_path, *ONE, "--wandb")) == 0
    assert "nothing logged: WANDB_MODE is disabled" in capsys.readouterr().out
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(evaluation(shop, tmp_path, *ONE)) == 0
    assert not (tmp_path / "wandb").exists()
    assert main(evaluation(shop, tmp_path, *ONE, "--wandb")) == 0
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
    few = ["--steps", "4", "--reinjection", "0.5", "--readout", "parallel"]
    axes = ["--noise", "fresh,reused", "--noise_temperature", "1,0.5", "--snap", "none,last:1"]
    (tmp_path / "rows.jsonl").write_bytes((whole / "rows.jsonl").read_bytes())
    assert main(evaluation(shop, tmp_path, *few, *axes)) == 0
    added = rows_in(tmp_path)[len(rows_in(whole)) :]
    settings = [tuple(row.setting[axis] for axis in ("noise_temperature", "noise", "snap")) for row in added]
    assert settings == list(product((1.0, 0.5), ("fresh", "reused"), ("none", "last:1")))
    assert [row.value("nfe") for row in added] == [5, 7] * 4
    assert len({row.value("perplexity") for row in added}) == len(added)
    heading, _, *lines = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()[:-2]]
    last = dict(zip(heading, lines[7 + len(YARDSTICKS)], strict=True))
    assert (last["noise"], last["drawn"], last["snap"]) == ("0.5", "reused", "last:1")
    assert not {"noise", "drawn", "snap"} & set((whole / "table.md").read_text().splitlines()[0].split(" | "))


def test_a_model_trained_for_a_number_of_steps_takes_it_and_no_other(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_identity(tiny_bundle(), source=str(shop / "text.jsonl"), trained_nfe=3, objective="jumps")
    bundle.save_pretrained(tmp_path / "jumps")
    with monkeypatch.context() as watched:
        watched.setattr("fewstep.cli.common.corpus_of", None)  # refused before the text is read
        assert main(evaluation(shop, tmp_path / "out", *ONE, "--steps", "1,3", model=tmp_path / "jumps")) == 2
    assert "objective (jumps) trained it for euler with 3 steps" in capsys.readouterr().err
    assert main(evaluation(shop, tmp_path / "out", *ONE, "--steps", "3", model=tmp_path / "jumps")) == 0
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
    assert main(evaluation(shop, tmp_path, *ONE, "--samples", "4", "--mauve")) == 0
    assert [row.value("mauve") for row in rows_in(tmp_path)] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    (real, other), *against = seen
    assert {len(features) for pair in seen for features in pair} == {8}
    assert not (real[:, None] == other[None]).all(-1).any()  # no block is compared with itself
    assert all((q == real).all() for _, q in against)


@pytest.mark.parametrize(("option", "written"), [("prompt", BLOCK_SIZE - 3), ("infill", 3)])
def test_held_out_texts_are_continued_and_filled_in_in_a_folder_of_their_own(
    shop: Path, tmp_path: Path, option: str, written: int
) -> None:
    with_identity(tiny_bundle(), source=str(shop / "text.jsonl")).save_pretrained(tmp_path / "model")
    assert main(evaluation(shop, None, *ONE, f"--{option}_tokens", "3", model=tmp_path / "model")) == 0
    rows = rows_in(tmp_path / f"evaluation_{option}3")
    assert [row.setting["name"] for row in rows] == [*YARDSTICKS[:3], "language model", "flow"]
    assert {row.value("kept") for row in rows} == {1.0} and rows[0].value("accuracy") == 1
    assert {row.value("tokens_per_sample") for row in rows[2:]} == {written}
    table = (tmp_path / f"evaluation_{option}3" / "table.md").read_text()
    assert "| accuracy | 95 % interval | given kept |" in table and f"given: {rows[0].protocol['given']}" in table


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
    options = [*ONE, "--scorer", tmp_path / "gpt", "--scorer_dtype", "bfloat16"]
    assert main(evaluation(shop, tmp_path / "out", *options, model=tmp_path / "flow")) == 0
    rows = rows_in(tmp_path / "out")
    assert [row.setting["name"] for row in rows] == [*YARDSTICKS[:5], "flow"]
    scorers = {(row.protocol["scorer"]["model"], row.protocol["scorer"]["dtype"]) for row in rows}
    assert scorers == {("GPT2LMHeadModel", "bfloat16")}
    assert "Perplexity under gpt" in (tmp_path / "out" / "table.md").read_text()
