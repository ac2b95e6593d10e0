"""``train.py`` in which the second process's loss is NaN at step 2, its own gradient finite."""

import math
import sys
from dataclasses import replace

import torch

from fewstep.cli.main import main
from fewstep.training.stage import Stage
from fewstep.types import LossOutput

honest = Stage.batch_loss


def poisoned(self: Stage, batch: dict[str, torch.Tensor], generator: torch.Generator, *, held_out: bool) -> LossOutput:
    output = honest(self, batch, generator, held_out=held_out)
    if held_out or self.global_rank != 1 or self.global_step != 2:
        return output
    return replace(output, loss=output.loss + math.nan)


Stage.batch_loss = poisoned

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
