"""The text that a model was trained on, as one stream of tokens: what copies are looked for in."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset


def train_stream(train: "Dataset") -> Tensor:
    """The tokens of a packed split in their order, (T,) int64, padding left out.

    Blocks are cut from one stream, or from documents that end with an end-of-text, so what follows the last token of a
    full block is the first of the next: copies across the cut are found too.
    """
    parts = list(real_tokens(train))
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.int64))


def real_tokens(split: "Dataset") -> Iterator["np.ndarray"]:
    """The tokens of a packed split in their order, padding left out: int64 arrays of a few thousand blocks each."""
    for rows in split.iter(4096):
        ids = np.asarray(rows["input_ids"], dtype=np.int64)
        yield ids[np.arange(ids.shape[1]) < np.asarray(rows["length"])[:, None]]
