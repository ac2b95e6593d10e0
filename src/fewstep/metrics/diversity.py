"""Repetition across samples. B samples, L tokens."""

import torch
from torch import Tensor


def distinct_n(ids: Tensor, n: int, mask: Tensor | None = None) -> float:
    """Distinct n-grams over all n-grams of the samples together (arXiv:1510.03055), in (0, 1].

    ``ids`` (B, L) int64; ``mask`` (B, L) bool, true at tokens that count: an n-gram counts where all of its tokens do.
    N-grams do not cross samples. The value falls as samples are added: compare equal numbers of equal length only.
    Raises ValueError for n < 1 and where there is no n-gram at all.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least 1 token")
    if ids.shape[1] < n:
        raise ValueError(f"samples of {ids.shape[1]} tokens hold no {n}-gram: pass longer samples or a smaller n")
    grams = ids.unfold(1, n, 1)
    kept = grams.reshape(-1, n) if mask is None else grams[mask.bool().unfold(1, n, 1).all(-1)]
    if not len(kept):
        raise ValueError(f"no {n}-gram is unmasked: pass longer samples or a smaller n")
    return len(torch.unique(kept, dim=0)) / len(kept)
