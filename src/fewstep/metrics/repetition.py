"""Repetition within a sample. B samples, L tokens."""

import torch
from torch import Tensor


def repetition_shares(ids: Tensor, n: int, mask: Tensor | None = None) -> Tensor:
    """Share of each sample's n-grams that occurred in it before, (B,) float64; NaN for a sample without an n-gram.

    One minus distinct n-grams over all n-grams of the sample ("seq-rep-n", arXiv:1908.04319, section 3.2).
    ``ids`` (B, L) int64; ``mask`` (B, L) bool, true at tokens that count: an n-gram counts where all of its tokens do.
    Raises ``ValueError`` for n < 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}: an n-gram has at least 1 token")
    shares = torch.full((len(ids),), float("nan"), dtype=torch.float64)
    if ids.shape[1] < n or not len(ids):
        return shares
    ids = ids.cpu()
    seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool().cpu()
    kept = seen.unfold(1, n, 1).all(-1)
    rows = torch.arange(len(ids))[:, None].expand_as(kept)
    # The number of its sample stands before an n-gram, so that all samples are counted at once.
    grams = torch.cat([rows[..., None], ids.unfold(1, n, 1)], dim=-1)[kept]
    distinct = torch.bincount(torch.unique(grams, dim=0)[:, 0], minlength=len(ids))
    return 1 - distinct.double() / kept.sum(-1).double()


def repeated_ngrams(ids: Tensor, n: int = 4, mask: Tensor | None = None) -> float:
    """Mean of :func:`repetition_shares` over the samples that hold an n-gram, in [0, 1).

    It grows with the length of a sample: compare equal lengths only. Raises ``ValueError`` for n < 1 and where no
    sample holds an n-gram.
    """
    shares = repetition_shares(ids, n, mask)
    if bool(shares.isnan().all()):
        raise ValueError(f"no sample holds a {n}-gram: pass longer samples or a smaller n")
    return float(shares.nanmean())
