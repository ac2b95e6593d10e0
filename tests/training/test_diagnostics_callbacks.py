"""Samples and diagnostics during training: of the averaged weights, without a trace in training, found afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.data.corpus import prepare_corpus
from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.evaluation.subject import text_subject
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.storage import load_checkpoint
from fewstep.training.command import main
from tests.runs import Workshop, logged
from tests.training.test_resume import assert_equal

ON = "--diagnostics.every_n_validations=1"
SMALL = ["--diagnostics.num_examples=8"]
CHEAP = ["--diagnostics.num_examples=4", "--diagnostics.measurements=[noise_robustness]"]
FAST_WEIGHTS = ["--ema.decay=0.9", "--model.optimizer.learning_rate=0.01"]
EXPECTED = {
    "flow": ("dabi_generated", "stiffness_peak", "late_flip_rate", "decision_step", "decidedness_at_0"),
    "head": ("cci", "dabi_head_fraction"),
}


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "diagnostics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def flow(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow trained with diagnostics."""
    run_dir = tmp_path_factory.mktemp("flow")
    assert main(workshop.arguments("flow", ON, *SMALL, *FAST_WEIGHTS, f"--run_dir={run_dir}", steps=20)) == 0
    return run_dir


def test_what_is_measured_and_sampled_is_the_averaged_model(workshop: Workshop, flow: Path) -> None:
    model = SavedModel.from_pretrained(flow / "model")
    blocks = prepare_corpus(workshop.settings()).validation
    rows = [json.loads(line) for line in (flow / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted([10, 20] * 12)
    texts = {n: [row["text"] for row in rows if row["step"] == 20 and row["num_steps"] == n] for n in (1, 4, 32)}
    table = lines_of(flow)[-1]["table"]
    rates = [table[name]["value"] for name in ("late_flip_rate", "decision_step")]

    def measure() -> list[float | None]:
        subject = text_subject(model, held_out_blocks(blocks, len(blocks)), num_examples=8, num_positions=2, seed=0)
        return [
            row.estimate.value for result in MEASUREMENTS["late_flips"].measure(subject.first(4)) for row in result.rows
        ]

    def sample() -> dict[int, list[str]]:
        return {steps: list(TextGenerator(model).generate(4, steps, seed=0).texts) for steps in texts}

    assert rates == pytest.approx(measure()) and texts == sample()
    current = load_checkpoint(flow / "checkpoints" / "last.ckpt")["current_model_state"]
    model.denoiser.load_state_dict({name.removeprefix("denoiser."): value for name, value in current.items()})
    assert rates != pytest.approx(measure()) and texts != sample()


def test_every_determined_row_is_logged_at_every_validation_and_stands_in_the_file(
    workshop: Workshop, flow: Path, tmp_path: Path
) -> None:
    flags = [ON, *SMALL, f"--model.autoencoder={flow / 'model'}", f"--run_dir={tmp_path}"]
    assert main(workshop.arguments("head", *flags)) == 0
    for stage, run_dir, steps in (("flow", flow, [10, 20]), ("head", tmp_path, [2, 4])):
        lines, metrics = lines_of(run_dir), logged(run_dir)
        assert [line["step"] for line in lines] == steps, "not in the sanity check before training"
        assert all(line["num_examples"] == 8 and line["seed"] == 0 for line in lines)
        for number, line in enumerate(lines):
            found = {name: row["value"] for name, row in line["table"].items() if row["value"] is not None}
            for name, value in found.items():
                column = metrics[f"diag/{name}"]
                assert column[sorted(metrics["val/loss"])[number]] == pytest.approx(value, rel=1e-5)
            assert set(EXPECTED[stage]) <= set(found)
    pictures = {file.name for file in (flow / "diagnostics").iterdir()}
    assert {"tube.png", "stiffness.png", "decision_step.png"} <= pictures


@pytest.mark.parametrize(("stage", "precision"), [("autoencoder", "bf16-mixed"), ("flow", "32")])
def test_training_is_the_same_with_and_without(workshop: Workshop, tmp_path: Path, stage: str, precision: str) -> None:
    states, runs = [], []
    for name, every in (("with", 1), ("without", 0)):
        flags = [f"--diagnostics.every_n_validations={every}", *CHEAP, f"--run_dir={tmp_path / name}"]
        assert main(workshop.arguments(stage, *flags, f"--trainer.precision={precision}")) == 0
        states.append(torch.get_rng_state())
        checkpoint = load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        runs.append((logged(tmp_path / name), checkpoint["state_dict"], checkpoint["current_model_state"]))
    assert torch.equal(*states)
    (measured, *weights), (plain, *others) = runs
    assert any(name.startswith("diag/") for name in measured)
    assert not any(name.startswith("diag/") for name in plain)
    same = [name for name in plain if name != "train/tokens_per_second"]
    assert {name: measured[name] for name in same} == {name: plain[name] for name in same}
    assert_equal(weights, others)


def test_a_resumed_run_measures_where_an_unbroken_one_does_and_keeps_its_lines(
    workshop: Workshop, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--diagnostics.every_n_validations=2", *CHEAP, "--checkpoint.every_n_steps=3"]
    arguments = workshop.arguments("flow", *flags, "--trainer.val_check_interval=1", steps=5)
    assert main([*arguments, f"--run_dir={whole}"]) == 0
    assert [line["step"] for line in lines_of(whole)] == [2, 4, 5], "every second validation, and the last"

    assert main([*arguments, f"--run_dir={broken}", "--trainer.max_steps=3"]) == 0
    with (broken / "diagnostics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "table": {}}\n{"step": 4, "cut off')
    assert main([*arguments, f"--run_dir={broken}", "--ckpt_path=last"]) == 0
    assert [line["step"] for line in lines_of(broken)] == [2, 3, 4, 5]
    assert lines_of(broken)[0]["table"], "the line before the stop is kept"


def test_too_little_held_out_text_is_said_once_and_stops_nothing(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [ON, "--data.block_size=128", "--data.batch_size=2", f"--run_dir={tmp_path}"]
    assert main(workshop.arguments("autoencoder", *flags)) == 0
    output = capsys.readouterr().out
    assert output.count("no diagnostics: ") == 1 and "done after 4 steps" in output
    assert not (tmp_path / "diagnostics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "named"), [("nothing", "'nothing'"), ("no_such.measure", "'no_such"), ("cci", "head")]
)
def test_a_wrong_name_or_a_missing_part_is_refused_in_one_line_before_a_run_begins(
    workshop: Workshop, tmp_path: Path, name: str, named: str
) -> None:
    flags = (f"--diagnostics.measurements=[late_flips,{name}]", f"--run_dir={tmp_path / 'run'}")
    with pytest.raises(UserError, match=rf"^diagnostics.measurements: [^\n]*{named}[^\n]*$"):
        main(workshop.arguments("flow", *flags))
    assert not (tmp_path / "run").exists()
