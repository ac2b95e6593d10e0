"""Entropy of the tokens that samples use. B samples, L tokens, V vocabulary."""

import torch
from torch import Tensor


def sample_entropies_nats(ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Entropy (B,) float64, in nats, of each sample's own token histogram.

    ``ids`` (B, L) int64; ``mask`` (B, L) bool, true at tokens that count. H = -sum_v p_v ln p_v with p_v the share of
    token v in the sample. L tokens have at most L values, so no sample exceeds ln L (3.47 for 32, 6.93 for 1024):
    compare blocks of equal length only. A sample without a token that counts has entropy 0.
    """
    seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    span = int(ids.max()) + 1 if ids.numel() else 1
    # One key for each (sample, token) pair, so that all histograms are counted at once without a (B, V) table.
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    keys, counts = torch.unique((rows * span + ids)[seen], return_counts=True)
    row = keys // span
    share = counts.double() / seen.sum(-1).double()[row]
    return torch.zeros(len(ids), dtype=torch.float64, device=ids.device).index_add(0, row, -share * share.log())


def unigram_entropy_nats(ids: Tensor, mask: Tensor | None = None) -> float:
    """Mean over samples of :func:`sample_entropies_nats`, as few-step papers report it, in nats on the model's tokens.

    Low values mean repetition, which a language model scores as likely: read perplexity beside this number only.
    Raises ValueError for no samples.
    """
    if not len(ids):
        raise ValueError("no samples: the entropy needs at least 1")
    return float(sample_entropies_nats(ids, mask).mean())


def pooled_entropy_nats(ids: Tensor, mask: Tensor | None = None) -> float:
    """Entropy in nats of the one histogram of all tokens of all samples, at most ln V: variety of the whole set.

    ``ids`` (B, L) int64, ``mask`` (B, L) bool. Raises ValueError where no token counts.
    """
    tokens = ids.flatten() if mask is None else ids[mask.bool()]
    if not len(tokens):
        raise ValueError("no tokens: the entropy needs at least 1")
    return float(sample_entropies_nats(tokens[None])[0])
