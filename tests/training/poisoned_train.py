"""``train.py`` in which the second process's loss is NaN at step 2, its own gradient finite."""

import math
import sys
from dataclasses import replace

import torch

from fewstep.cli.main import main
from fewstep.training import LanguageModelModule
from fewstep.types import LossOutput

honest = LanguageModelModule.batch_loss


def poisoned(self: LanguageModelModule, batch: dict[str, torch.Tensor], generator: torch.Generator) -> LossOutput:
    output = honest(self, batch, generator)
    if not self.training or self.global_rank != 1 or self.global_step != 2:
        return output
    return replace(output, loss=output.loss + math.nan)


LanguageModelModule.batch_loss = poisoned

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
