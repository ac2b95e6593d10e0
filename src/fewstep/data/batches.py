"""Rows to tensors, and which rows stand in which batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from fewstep.errors import UserError


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Rows of a packed split to one batch.

    Returns ``ids`` (B, L) int64; ``mask`` (B, L) bool, true at the tokens that count; and of each row, (B,) int64,
    ``length`` (their number), ``num_bytes`` and ``index``. Of pairs ``known`` (B, L) bool is true at the prompts, and
    the mask everywhere: where an answer ends depends on its prompt, so the model writes the ends that fill a block.
    """
    ids = torch.from_numpy(np.stack([np.asarray(row["input_ids"], dtype=np.int64) for row in examples]))
    names = ("length", "num_bytes", "index")
    length, num_bytes, index = (torch.tensor([int(row[name]) for row in examples]) for name in names)
    mask = torch.arange(ids.shape[1]) < length[:, None]
    batch = {"ids": ids, "mask": mask, "length": length, "num_bytes": num_bytes, "index": index}
    if "prompt" in examples[0]:
        prompts = torch.tensor([int(row["prompt"]) for row in examples])
        batch |= {"known": torch.arange(ids.shape[1]) < prompts[:, None], "mask": torch.ones_like(mask)}
    return batch


class StepBatchSampler(Sampler[list[int]]):
    """Batches of which the k-th depends on (seed, k, rank, world_size) only, so that a resumed run sees the rest.

    Epoch e is a permutation of all examples drawn from (seed, e), cut into optimizer steps of
    G = ``batches_per_step * world_size * batch_size`` examples; a rest that fills no step is left out of that epoch.
    Batch i of a step on rank r holds the examples from ``(i * world_size + r) * batch_size`` on: the examples of a step
    depend on G alone. ``num_batches``, also ``len()``, are those of the whole run. ``start`` is asked at the start of
    every pass for the number of the first batch to yield. Raises ``UserError`` for fewer examples than one optimizer
    step takes.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        batches_per_step: int = 1,
        start: Callable[[], int] = lambda: 0,
    ) -> None:
        step_size = batch_size * world_size * batches_per_step
        if num_examples < step_size:
            accumulated = f" x {batches_per_step} accumulated batches" if batches_per_step > 1 else ""
            raise UserError(
                f"the data set has {num_examples} examples, fewer than one batch of {step_size} "
                f"({batch_size} x {world_size} processes{accumulated}): lower the batch size or give more text"
            )
        self.num_examples, self.batch_size, self.num_batches, self.seed = num_examples, batch_size, num_batches, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.batches_per_epoch = num_examples // step_size * batches_per_step

    def permutation(self, epoch: int) -> np.ndarray:
        """The order of all rows in an epoch, (num_examples,) int64."""
        return np.random.default_rng([abs(self.seed), self.seed < 0, epoch]).permutation(self.num_examples)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, np.zeros(0, np.int64)
        for batch in range(self.start(), self.num_batches):
            if batch // self.batches_per_epoch != epoch:
                epoch = batch // self.batches_per_epoch
                order = self.permutation(epoch)
            first = (batch % self.batches_per_epoch * self.world_size + self.rank) * self.batch_size
            yield order[first : first + self.batch_size].tolist()

    def __len__(self) -> int:
        return self.num_batches


def spread_rows(length: int, count: int) -> np.ndarray:
    """``count`` different rows of 0 .. length - 1, spread evenly (count,) int64."""
    return (np.arange(count) * length) // count
