"""First-order boundary distances at every token of a block. R rows, L tokens, V vocabulary."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, norms

NUMBERS_AT_ONCE = 2**23
"""Logits that are held at a time, for which a graph is kept: a bound on memory."""


def block_distances(
    decode_of: Callable[[slice], Decode], z: Tensor, num_tokens: int, rows_at_once: int | None = None
) -> Tensor:
    """m / |grad m| (R, P) float64 at the first P = ``num_tokens`` tokens of the latents ``z`` (R, K, D), in the unit of
    their numbers.

    m is the lead of the likeliest token over the second, as in :func:`fewstep.diagnostics.margins`, whose distances
    these are: there a position costs an evaluation, here all positions of a row share one, with a backward pass each.
    ``decode_of`` gives, for a slice of the rows, what turns their latents into logits (r, L, V); ``rows_at_once``
    bounds the slices. Infinite where the gradient is zero. This project's definition, after arXiv:2606.30705.
    """
    with torch.inference_mode(False), torch.enable_grad():
        parts = row_slices(len(z), rows_at_once or len(z))
        return torch.cat([_distances(decode_of(rows), z[rows].detach().clone(), num_tokens) for rows in parts])


def rows_within_memory(num_tokens: int, vocab_size: int) -> int:
    """How many rows of logits (L, V) are held at a time, at least 1."""
    return max(1, NUMBERS_AT_ONCE // (num_tokens * vocab_size))


def row_slices(num_rows: int, at_once: int) -> list[slice]:
    """The rows 0 .. ``num_rows`` - 1 in slices of ``at_once``."""
    return [slice(first, first + at_once) for first in range(0, num_rows, at_once)]


def _distances(decode: Decode, z: Tensor, num_tokens: int) -> Tensor:
    logits = decode(z.requires_grad_())[:, :num_tokens]
    if logits.shape[-1] == 1:  # there is no other token to flip to
        return torch.full(logits.shape[:2], torch.inf, dtype=torch.float64, device=z.device)
    first, second = logits.topk(2, dim=-1).values.double().unbind(-1)
    lead = first - second
    slope = torch.stack([_slope(column, z) for column in lead.unbind(1)], 1)
    lead = lead.detach()
    return torch.where((slope > 0) & slope.isfinite() & lead.isfinite(), lead / slope, torch.inf)


def _slope(lead: Tensor, z: Tensor) -> Tensor:
    """|grad| (R,) of ``lead`` (R,), row by row."""
    if not lead.requires_grad:
        return torch.zeros_like(lead)
    (gradient,) = torch.autograd.grad(lead.sum(), z, retain_graph=True, allow_unused=True)
    return torch.zeros_like(lead) if gradient is None else norms(gradient)
