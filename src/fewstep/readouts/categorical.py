"""Likelihood of tokens, and drawing them from logits. B batch, L tokens, K positions, W width, V vocabulary."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.schedules import upcast
from fewstep.types import Ending, KnownTokens, TokenSample

MAX_LOGITS = 2**25
"""Logits held at once where fewer will do: 128 MiB in float32."""


def rows_at_once(logits_per_row: int) -> int:
    """How many rows are computed together, at least 1; as good as all where the logits of a row are not known (0)."""
    return max(1, MAX_LOGITS // max(1, logits_per_row))


def token_nats(logits: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood (B, L) in nats, at least float32, of ``ids`` (B, L) under ``logits`` (B, L, V)."""
    # Classes stay the last axis: cross-entropy over a strided one is several times slower.
    flat = F.cross_entropy(upcast(logits).flatten(0, 1), ids.flatten(), reduction="none")
    return flat.view(ids.shape)


def hidden_nats(hidden: Tensor, outputs: nn.Linear, ids: Tensor) -> Tensor:
    """:func:`token_nats` of ``outputs(hidden)``, (B, L), that never holds more than about ``MAX_LOGITS`` logits.

    ``outputs`` maps each row of ``hidden`` (B, K, W) to the logits of its L / K tokens, one after the other. Where the
    logits are too many, rows are taken in parts whose logits the backward pass computes again.
    """
    rows = hidden.flatten(0, 1)
    targets = ids.reshape(len(rows), -1)

    def part_nats(part: Tensor, part_targets: Tensor) -> Tensor:
        return token_nats(outputs(part).unflatten(-1, (part_targets.shape[1], -1)), part_targets)

    size = rows_at_once(outputs.out_features)
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
    """Raise ``ValueError``, in one line, for settings that :func:`draw_tokens` cannot draw with."""
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
    nats under the distribution drawn from: after temperature, the ``top_k`` likeliest tokens (arXiv:1805.04833, section
    5.2), then the fewest of these whose mass reaches ``top_p`` (the nucleus of arXiv:1904.09751). Temperature 0 is the
    argmax, with log-probability 0. One uniform per token, so that a draw depends on its own row and ``u`` only;
    float64, since float32 sums change generative perplexity. Raises ``ValueError`` where :func:`check_draw` does.
    """
    check_draw(temperature, top_p, top_k)
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, torch.zeros_like(ids, dtype=torch.float32)
    # The largest is subtracted before the division, which would otherwise overflow at tiny temperatures.
    scores = logits.double() - logits.amax(-1, keepdim=True).double()
    probs = (scores / temperature).softmax(-1)
    if top_k is not None and top_k < probs.shape[-1]:
        likeliest, order = probs.topk(top_k, dim=-1)
        probs = torch.zeros_like(probs).scatter(-1, order, likeliest / likeliest.sum(-1, keepdim=True))
    if top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
        nucleus = torch.zeros_like(probs).scatter(-1, order, ordered)
        probs = nucleus / nucleus.sum(-1, keepdim=True)
    cumulative = probs.cumsum(-1)
    target = u.double()[..., None] * cumulative[..., -1:]
    ids = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return ids[..., 0], probs.gather(-1, ids)[..., 0].log().float()


class TokenDraw(NamedTuple):
    """How tokens are drawn (:func:`draw_tokens`), what ends a text, and which tokens are known and stay."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    ending: Ending | None = None
    known: KnownTokens | None = None


class Held(NamedTuple):
    """What a draw keeps: ``ids`` (...) where ``known`` (...) bool; at ``inside`` (...) a known token is yet to come."""

    ids: Tensor
    known: Tensor
    inside: Tensor

    @classmethod
    def of(cls, known: KnownTokens | None) -> "Held | None":
        """None where no token is known."""
        if known is None:
            return None
        inside = known.mask.flip(1).cumsum(1).flip(1) > 0
        return cls(known.ids, known.mask, inside & ~known.mask)

    def at(self, *index: slice | Tensor | int) -> "Held":
        """The same of some rows or positions."""
        return Held(*(field[index] for field in self))


def draw_unknown(logits: Tensor, u: Tensor, held: Held | None, draw: TokenDraw) -> tuple[Tensor, Tensor]:
    """:func:`draw_tokens` where nothing is held; what is held stays, with log-probability 0.

    No end-of-text is drawn while a known token is yet to come.
    """
    if held is not None and draw.ending is not None:
        is_end = torch.arange(logits.shape[-1], device=logits.device) == draw.ending.end_id
        logits = logits.masked_fill(held.inside[..., None] & is_end, -math.inf)
    ids, log_probs = draw_tokens(logits, u, temperature=draw.temperature, top_p=draw.top_p, top_k=draw.top_k)
    if held is None:
        return ids, log_probs
    return torch.where(held.known, held.ids, ids), log_probs.masked_fill(held.known, 0.0)


def draw_in_parts(
    read: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor], draw: TokenDraw, logits_per_row: int
) -> TokenSample:
    """Ids and log-probabilities (B, L) that ``read`` (*inputs, held) gives, :func:`rows_at_once` of the B rows."""
    held, parts, size = Held.of(draw.known), [], rows_at_once(logits_per_row)
    for start in range(0, len(inputs[0]), size):
        rows = slice(start, start + size)
        parts.append(read(*(part[rows] for part in inputs), None if held is None else held.at(rows)))
    ids, log_probs = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return cut_at_end(ids, log_probs, draw.ending)


def tokens_to_first_end(ids: Tensor, end_id: int) -> Tensor:
    """Mask (B, L), true up to and including the first ``end_id`` of each row of ``ids`` (B, L)."""
    ends = (ids == end_id).long()
    return ends.cumsum(-1) - ends == 0


def cut_at_end(ids: Tensor, log_probs: Tensor, ending: Ending | None) -> TokenSample:
    """``ids`` and ``log_probs`` (B, L) up to the first end-of-text of each row; after it the mask (B, L) is false."""
    if ending is None:
        return TokenSample(ids, log_probs)
    mask = tokens_to_first_end(ids, ending.end_id)
    return TokenSample(ids.masked_fill(~mask, ending.pad_id), log_probs.masked_fill(~mask, 0.0), mask)
