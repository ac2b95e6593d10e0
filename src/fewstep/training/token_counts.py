"""How often each token occurs in the train split."""

import numpy as np
import torch
from torch import Tensor

from fewstep.training.data_module import TextDataModule

MAX_BLOCKS = 50_000
"""Enough for the prior; a larger corpus is not read through for it."""


def token_counts(data: TextDataModule, vocab_size: int) -> Tensor:
    """Counts (V,) int64 of real tokens in the first ``MAX_BLOCKS`` train blocks."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    rows = iter(data.corpus.train)
    for _, row in zip(range(MAX_BLOCKS), rows, strict=False):
        counts += np.bincount(row["input_ids"][: row["length"]], minlength=vocab_size)
    return torch.from_numpy(counts)


def log_frequencies(counts: Tensor) -> Tensor:
    """Log-frequencies (V,) float32 in nats of ``counts`` (V,), each plus one, so that no token is impossible."""
    smoothed = counts.double() + 1
    return (smoothed / smoothed.sum()).log().float()
