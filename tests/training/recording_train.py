"""``train.py`` that also writes, into the folder named by RECORD, what every process trained on and ended with.

With POISONED the second process's loss is NaN at step 2, its own gradient finite.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from fewstep.cli.main import main
from fewstep.training.command import FewstepCLI
from fewstep.training.data_modules import StepDataModule
from fewstep.training.module import TrainingModule, spread_nonfinite

folder = Path(os.environ["RECORD"])
training_step, after_fit = TrainingModule.training_step, FewstepCLI.after_fit


def recorded_step(self: TrainingModule, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
    loss = training_step(self, batch, batch_idx)
    if os.environ.get("POISONED") and self.global_rank == 1 and self.global_step == 2:
        loss = spread_nonfinite(loss + math.nan)
    row = {"index": batch["index"].tolist(), "loss": loss.item()}
    with (folder / f"rank{self.global_rank}.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    return loss


def recorded_end(self: FewstepCLI) -> None:
    pl_module: Any = self.model
    auxiliary = getattr(pl_module, "_auxiliary", None)
    second = {} if auxiliary is None or auxiliary.value is None else auxiliary.value.network.state_dict()
    weights = {**pl_module.state_dict(), **{f"auxiliary.{name}": value for name, value in second.items()}}
    torch.save(weights, folder / f"rank{pl_module.global_rank}.pt")
    after_fit(self)


if os.environ.get("SAME_DRAWS"):  # every rank takes the batches and the noise of a single process
    StepDataModule.ranks = lambda self: (0, 1)  # type: ignore[method-assign]
TrainingModule.training_step, FewstepCLI.after_fit = recorded_step, recorded_end

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
