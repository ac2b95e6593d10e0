"""Likelihood of tokens, and drawing them from logits. B batch, L tokens, K positions, W width, V vocabulary."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.schedules import upcast


def token_nats(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood (B, L) in nats, >= float32, of ``ids`` (B, L) under ``logits`` (B, L, V)."""
    # Classes stay the last axis: cross-entropy over a strided one is several times slower.
    flat = F.cross_entropy(upcast(logits).flatten(0, 1), ids.flatten(), reduction="none")
    return flat.view(ids.shape)


MAX_LOGITS = 2**25
"""Logits that are held at once where a loss can do with fewer: 128 MiB in float32."""


def hidden_nats(hidden: Tensor, outputs: nn.Linear, ids: Tensor, *, max_logits: int | None = None) -> Tensor:
    """:func:`token_nats` of ``outputs(hidden)``, (B, L), that never holds more than about ``max_logits`` logits.

    ``outputs`` maps each row of ``hidden`` (B, K, W) to the logits of the L / K tokens that it stands for, one after
    the other. Where all logits together are more than ``max_logits`` (``MAX_LOGITS`` where None), rows are taken in
    parts, and the backward pass computes the logits of a part again: one product more, in place of B L V numbers that
    wait for it (this project's definition). Raises ``ValueError`` where L is no multiple of K.
    """
    rows, positions = hidden.flatten(0, 1), hidden.shape[1]
    if ids.shape[1] % positions:
        raise ValueError(f"{ids.shape[1]} tokens for {positions} positions: expected a whole number of tokens each")
    targets = ids.reshape(len(rows), -1)

    def part_nats(part: Tensor, part_targets: Tensor) -> Tensor:
        return token_nats(outputs(part).unflatten(-1, (part_targets.shape[1], -1)), part_targets)

    size = max(1, (MAX_LOGITS if max_logits is None else max_logits) // outputs.out_features)
    if size >= len(rows):
        return part_nats(rows, targets).view(ids.shape)
    parts = [
        checkpoint(part_nats, *part, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else part_nats(*part)
        for part in zip(rows.split(size), targets.split(size), strict=True)
    ]
    return torch.cat(parts).view(ids.shape)


def check_draw(temperature: float, top_p: float, top_k: int | None) -> None:
    """Raise ``ValueError`` with one line where :func:`draw_tokens` cannot draw with these settings."""
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"temperature is {temperature}: expected a finite number of at least 0 (0 takes the likeliest)"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: expected a number above 0 and at most 1 (1 keeps every token)")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: expected a whole number of at least 1 (left out, every token is kept)")


def draw_tokens(
    logits: Tensor, u: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens by inversion of the cumulative distribution, in float64.

    ``logits`` (..., V), ``u`` (...) uniform on [0, 1). Returns ids (...) int64 and their log-probabilities (...) in
    nats under the distribution drawn from: after temperature, then the ``top_k`` likeliest tokens, then the nucleus of
    mass ``top_p`` among these. Temperature 0 is the argmax, whose log-probability is 0. One uniform per token, so a
    draw depends on nothing but its own row and its own ``u``; float64, since float32 sums move generative perplexity.
    Raises ``ValueError`` outside 0 <= temperature < infinity, 0 < top_p <= 1 and top_k >= 1.
    """
    check_draw(temperature, top_p, top_k)
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, torch.zeros_like(ids, dtype=torch.float32)
    # The largest is taken off before the division, which would otherwise overflow at tiny temperatures.
    scores = logits.double() - logits.amax(-1, keepdim=True).double()
    probs = (scores / temperature).softmax(-1)
    if top_k is not None and top_k < probs.shape[-1]:
        probs = keep_likeliest(probs, top_k)
    if top_p < 1:
        probs = keep_nucleus(probs, top_p)
    cumulative = probs.cumsum(-1)
    target = u.double()[..., None] * cumulative[..., -1:]
    ids = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return ids[..., 0], probs.gather(-1, ids)[..., 0].log().float()


def keep_likeliest(probs: Tensor, top_k: int) -> Tensor:
    """Keep exactly ``top_k`` tokens, the likeliest (arXiv:1805.04833, section 5.2), renormalised. (..., V)."""
    kept, order = probs.topk(top_k, dim=-1)
    return torch.zeros_like(probs).scatter(-1, order, kept / kept.sum(-1, keepdim=True))


def keep_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose mass reaches ``top_p`` (arXiv:1904.09751), renormalised. (..., V)."""
    ordered, order = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(probs).scatter(-1, order, torch.where(before < top_p, ordered, torch.zeros_like(ordered)))
    return kept / kept.sum(-1, keepdim=True)
