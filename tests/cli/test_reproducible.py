"""Every result carries its provenance, which is no part of what makes rows comparable; and a seed gives one result."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli.main import main
from fewstep.provenance import provenance
from tests.cli.shops import diagnosis, evaluation, make_shop, rows_in, timeless
from tests.runs import ROOT, Workshop, logged


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("shop"))


def sampling(shop: Path, output: Path, *options: str) -> list[str]:
    few = ["--num_samples", "7", "--steps", "3", "--readout", "head", "--reinjection", "0.5", "--device", "cpu"]
    return ["sample", str(shop / "model"), *few, "--output", str(output), *options]


def fresh(arguments: list[str]) -> None:
    """The command in a process of its own."""
    script = "import sys\nfrom fewstep.cli.main import main\nsys.exit(main())"
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, check=True, capture_output=True)


def test_samples_rows_and_diagnoses_carry_it(shop: Path, tmp_path: Path) -> None:
    study = ["theory", "--flips", "--effort", "0.01", "--out", str(tmp_path / "theory")]
    few = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "2"]
    commands: list[tuple[list[str], Path]] = [
        (sampling(shop, tmp_path / "samples.jsonl"), tmp_path / "samples.jsonl"),
        (evaluation(shop, tmp_path / "evaluation", *few), tmp_path / "evaluation" / "rows.jsonl"),
        (diagnosis(shop, tmp_path / "diagnosis"), tmp_path / "diagnosis" / "diagnostics.json"),
        (study, tmp_path / "theory" / "flips.json"),
    ]
    for (name, *arguments), file in commands:
        assert main([name, *arguments]) == 0
        found = rows_in(file) if file.suffix == ".jsonl" else [json.loads(file.read_text())]
        assert found
        assert all(one["provenance"] == provenance(name, arguments) for one in found), name


def test_another_machine_or_version_of_the_code_does_not_part_rows_of_one_protocol(shop: Path, tmp_path: Path) -> None:
    few = ["--steps", "1", "--reinjection", "0", "--readout", "parallel", "--samples", "2"]
    assert main(evaluation(shop, tmp_path, *few)) == 0
    rows = rows_in(tmp_path / "rows.jsonl")
    for row in rows[:2]:
        row["provenance"] = {"commit": "0" * 40, "hardware": {"processor": "abacus"}}
    del rows[2]["provenance"]  # as it was before rows carried it
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(evaluation(shop, tmp_path, *few, "--steps", "1,2")) == 0
    assert len({row["protocol_hash"] for row in rows_in(tmp_path / "rows.jsonl")}) == 1
    assert len(rows_in(tmp_path / "rows.jsonl")) == len(rows) + 1


def without_provenance(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else [json.loads(text)]
    return [timeless(one) for one in found]


def test_a_seed_gives_the_same_texts_and_figures_in_a_fresh_process(shop: Path, tmp_path: Path) -> None:
    few = ["--steps", "2", "--reinjection", "1", "--readout", "head"]
    for name, command, file in (
        ("samples", sampling, "samples.jsonl"),
        ("diagnosis", diagnosis, "diagnostics.json"),
        ("evaluation", lambda shop, out: evaluation(shop, out, *few), "rows.jsonl"),
    ):
        places = [tmp_path / f"{name}_{number}" for number in (1, 2)]
        for place, call in zip(places, (main, fresh), strict=True):
            if name == "samples":
                place.mkdir()
                call(command(shop, place / file))
            else:
                call(command(shop, place))
        one, other = (without_provenance(place / file) for place in places)
        assert one == other, name
        assert one


def test_texts_depend_neither_on_the_batch_size_nor_on_how_many_are_asked_for(shop: Path, tmp_path: Path) -> None:
    texts = []
    for number, options in enumerate((["--batch_size", "64"], ["--batch_size", "1"], ["--num_samples", "5"])):
        assert main(sampling(shop, tmp_path / f"{number}.jsonl", *options)) == 0
        texts.append([row["ids"] for row in rows_in(tmp_path / f"{number}.jsonl")])
    assert texts[1] == texts[0]
    assert texts[2] == texts[0][:5]


def test_a_training_depends_neither_on_workers_nor_on_what_is_logged(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {
        "plain": [],
        "workers": ["--data.num_workers=2"],
        "quiet": ["--trainer.logger=false"],
        "rarely": ["--trainer.log_every_n_steps=2", "--trainer.enable_progress_bar=true"],
    }
    for name, flags in variants.items():
        assert main(["train", *workshop.arguments("flow", f"--run_dir={tmp_path / name}", *flags)]) == 0
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["train", *workshop.arguments("flow", f"--run_dir={tmp_path / 'wandb'}")]) == 0
    weights = {name: (tmp_path / name / "model" / "denoiser.safetensors").read_bytes() for name in [*variants, "wandb"]}
    assert [name for name in weights if weights[name] != weights["plain"]] == []
    assert logged(tmp_path / "workers")["train/loss"] == logged(tmp_path / "plain")["train/loss"]
