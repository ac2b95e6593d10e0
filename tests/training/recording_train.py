"""``train.py`` that also writes, into the folder named by RECORD, what every process trained on."""

import json
import os
import sys
from pathlib import Path

import torch

from fewstep.cli.main import main
from fewstep.training.module import TrainingModule

training_step = TrainingModule.training_step


def recorded_step(self: TrainingModule, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
    loss = training_step(self, batch, batch_idx)
    row = {"step": self.global_step, "index": batch["index"].tolist(), "loss": loss.item()}
    with (Path(os.environ["RECORD"]) / f"rank{self.global_rank}.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    return loss


TrainingModule.training_step = recorded_step

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
