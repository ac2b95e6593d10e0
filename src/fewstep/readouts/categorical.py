"""Drawing tokens from logits. B batch, V vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.schedules import upcast


def token_nats(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood (B, L) in nats, >= float32, of ``ids`` (B, L) under ``logits`` (B, L, V)."""
    # Classes stay the last axis: cross-entropy over a strided one is several times slower.
    flat = F.cross_entropy(upcast(logits).flatten(0, 1), ids.flatten(), reduction="none")
    return flat.view(ids.shape)


def draw_tokens(logits: Tensor, u: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Tokens by inversion of the cumulative distribution, in float64.

    ``logits`` (..., V), ``u`` (...) uniform on [0, 1). Returns ids (...) int64 and their log-probabilities (...) in
    nats under the distribution drawn from (after temperature and top-p). Temperature 0 is the argmax, whose
    log-probability is 0. One uniform per token, so a draw depends on nothing but its own row and its own ``u``;
    float64, since float32 sums move generative perplexity. Raises ``ValueError`` outside temperature >= 0 and
    0 < top_p <= 1.
    """
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"temperature is {temperature}, top_p is {top_p}: expected temperature >= 0 and 0 < top_p <= 1"
        )
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, torch.zeros_like(ids, dtype=torch.float32)
    # The largest is taken off before the division, which would otherwise overflow at tiny temperatures.
    scores = logits.double() - logits.amax(-1, keepdim=True).double()
    probs = (scores / temperature).softmax(-1)
    if top_p < 1:
        probs = keep_nucleus(probs, top_p)
    cumulative = probs.cumsum(-1)
    target = u.double()[..., None] * cumulative[..., -1:]
    ids = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return ids[..., 0], probs.gather(-1, ids)[..., 0].log().float()


def keep_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose mass reaches ``top_p`` (arXiv:1904.09751), renormalised. (..., V)."""
    ordered, order = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(probs).scatter(-1, order, torch.where(before < top_p, ordered, torch.zeros_like(ordered)))
    return kept / kept.sum(-1, keepdim=True)
