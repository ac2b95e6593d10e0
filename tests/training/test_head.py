"""The head's stage."""

from pathlib import Path

from fewstep.pipeline import TextGenerator
from fewstep.training.command import main
from tests.runs import Workshop, logged


def test_a_head_that_hides_earlier_tokens_trains_from_yaml_and_reads_without_them(
    workshop: Workshop, tmp_path: Path
) -> None:
    assert main(workshop.arguments("flow", f"--run_dir={tmp_path / 'flow'}", steps=2)) == 0
    flags = [f"--model.autoencoder={tmp_path / 'flow' / 'model'}", "--model.objective.prefix_dropout=0.5"]
    assert main(workshop.arguments("head", f"--run_dir={tmp_path / 'head'}", *flags, steps=3)) == 0
    assert len(logged(tmp_path / "head")["train/loss"]) == 3
    made = TextGenerator.from_pretrained(tmp_path / "head" / "model").generate(2, readout="head_off")
    assert len(made.texts) == 2
