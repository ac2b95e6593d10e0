"""What samples are given of held-out texts, a prompt or all around a gap, and what they write in the other places.

N texts, B of them in a batch, L tokens.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.evaluation.rows import Column, Setting, Value
from fewstep.evaluation.sweep import Batch, Measure, Samples, Statistic
from fewstep.types import KnownTokens, TokenBatch

if TYPE_CHECKING:
    from fewstep.evaluation.text_plan import TextStudy

KnownOf = Callable[[Batch], KnownTokens]
"""The tokens (B, L) that are given of a batch's texts."""
COLUMNS = {
    "accuracy": Column("accuracy", ".3f", interval=True),
    "kept": Column("given kept", ".3f"),
}


def first_tokens(tokens: TokenBatch, count: int | Tensor) -> Tensor:
    """Mask (N, L) of the first ``count`` tokens of every text: a number, or one for each text (N,)."""
    sizes = torch.as_tensor(count).reshape(-1, 1)
    return (torch.arange(tokens.ids.shape[1]) < sizes).expand_as(tokens.mask)


def around_gap(tokens: TokenBatch, count: int) -> Tensor:
    """Mask (N, L) of all but ``count`` tokens in the middle of every text, what stands behind its end included."""
    place, start = torch.arange(tokens.ids.shape[1]), (tokens.mask.sum(1, keepdim=True) - count) // 2
    return (place < start) | (place >= start + count)


def known_of(tokens: TokenBatch, given: Tensor, num_samples: int) -> KnownOf:
    """What is ``given`` (N, L) of held-out ``tokens`` (N, L), batch by batch; ``num_samples`` of them are of a seed."""

    def known(batch: Batch) -> KnownTokens:
        rows = batch.rows(num_samples)
        return KnownTokens(tokens.ids[rows], given[rows])

    return known


def ratio(rows: Tensor) -> Tensor:
    """The sum of the first numbers over the sum of the second, (..., N, 2) to (...)."""
    first, second = rows.sum(-2).unbind(-1)
    return first / second


def comparison(study: "TextStudy") -> Measure | None:
    """How many tokens are those of the held-out text, where they are written and where they are given.

    ``accuracy``: share of the held-out text's tokens, up to its end, that stand at the same place of the sample;
    ``kept``: share of the given ones that do, which is 1 for every sampler that holds what it is given.
    """
    real = study.real
    if real.given is None:
        return None
    known, given = real.held_out, real.given

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        rows = batch.rows(study.num_samples)
        ids, mask, is_given = known.ids[rows], known.mask[rows], given[rows]
        same = (samples.tensors["ids"] == ids) & samples.tensors["text"] & mask
        counts = [part.sum(1) for written in (~is_given, is_given) for part in (same & written, mask & written)]
        return {"matches": torch.stack(counts, dim=1).double()}

    def values(setting: Setting, samples: Samples) -> Mapping[str, Value | Statistic]:
        written, held = samples.tensors["matches"].split(2, dim=1)
        return {
            "accuracy": Statistic(written, ratio, samples.tensors["seed_index"]),
            "kept": Value(float(ratio(held)) if held[:, 1].any() else None),
        }

    return Measure(
        values,
        take,
        {"given": real.given_rule},
        f"given: {real.given_rule}; all other figures are of the tokens that are written, the perplexity given what "
        "stands before them; accuracy: share of them that are held-out text's own",
        COLUMNS,
    )
