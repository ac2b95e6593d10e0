"""Callbacks that judge the model judge the averaged weights, and what they write is what the exported model gives."""

import json
from pathlib import Path

from fewstep.cli.train import main
from fewstep.pipeline import TextGenerator
from fewstep.storage import load_checkpoint
from tests.runs import Workshop


def test_samples_are_those_of_the_averaged_weights(workshop: Workshop, tmp_path: Path) -> None:
    flags = ["--ema.decay=0.9", "--model.optimizer.learning_rate=0.01"]
    assert main(workshop.arguments("flow", *flags, f"--run_dir={tmp_path}", steps=20)) == 0
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted([10, 20] * 12)
    generator = TextGenerator.from_pretrained(tmp_path / "model")
    for steps in (1, 4, 32):
        texts = [row["text"] for row in rows if row["step"] == 20 and row["num_steps"] == steps]
        assert texts == list(generator.generate(4, steps, seed=0).texts)
    current = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["current_model_state"]
    weights = {name.removeprefix("denoiser."): value for name, value in current.items()}
    generator.model.denoiser.load_state_dict(weights)
    raw = [generator.generate(4, steps, seed=0).texts for steps in (1, 4, 32)]
    assert raw != [tuple(r["text"] for r in rows if r["step"] == 20 and r["num_steps"] == n) for n in (1, 4, 32)]
