"""What samples are given of held-out texts, a prompt or all around a gap, and how they compare with these texts.

N texts, L tokens.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.rows import Column, Setting, Value
from fewstep.evaluation.scorers import texts_of
from fewstep.evaluation.sweep import Batch, Measure, Samples, Statistic
from fewstep.types import TokenBatch

if TYPE_CHECKING:
    from fewstep.evaluation.text_plan import TextStudy

PROMPTS = "the prompts"
"""The rule by which a pair's prompt is given, and its answer written."""


def first_tokens(tokens: TokenBatch, count: int | Tensor) -> Tensor:
    """Mask (N, L) of the first ``count`` tokens of every text: a number, or one for each text (N,)."""
    sizes = torch.as_tensor(count).reshape(-1, 1)
    return (torch.arange(tokens.ids.shape[1]) < sizes).expand_as(tokens.mask)


def around_gap(tokens: TokenBatch, count: int) -> Tensor:
    """Mask (N, L) of all but ``count`` tokens in the middle of every text, what stands behind its end included."""
    place, start = torch.arange(tokens.ids.shape[1]), (tokens.mask.sum(1, keepdim=True) - count) // 2
    return (place < start) | (place >= start + count)


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
        ids, mask, is_given = known.ids[batch.rows], known.mask[batch.rows], given[batch.rows]
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
        {"accuracy": Column("accuracy", ".3f", interval=True), "kept": Column("given kept", ".3f")},
    )


def answers(study: "TextStudy") -> Measure | None:
    """Exact match and ROUGE-L of answers to held-out prompts; ``UserError`` where its package is not installed.

    Texts are compared without white space around them. ROUGE-L is the F-measure of the package rouge-score, without
    stemming (Lin 2004, ROUGE: a package for automatic evaluation of summaries, section 3.1).
    """
    if study.real.given is None or study.real.given_rule != PROMPTS:
        return None
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError(f"ROUGE-L needs the package rouge-score ({error}): pip install 'fewstep[rouge]'") from None
    scorer, tokenizer, real = RougeScorer(["rougeL"]), study.bundle.tokenizer, study.real
    expected = texts_of(tokenizer, real.held_out.ids, real.held_out.mask & ~study.real.given)

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        written = texts_of(tokenizer, samples.tensors["ids"], samples.tensors["mask"])
        pairs = list(zip(expected[batch.rows], written, strict=True))
        exact = [float(ours.strip() == theirs.strip()) for theirs, ours in pairs]
        overlap = [scorer.score(theirs, ours)["rougeL"].fmeasure for theirs, ours in pairs]
        return {"answers": torch.tensor([exact, overlap], dtype=torch.float64).T}

    def values(setting: Setting, samples: Samples) -> Mapping[str, Value | Statistic]:
        columns = samples.tensors["answers"].split(1, dim=1)
        names = ("exact_match", "rouge_l")
        return {n: Statistic(c, seed_index=samples.tensors["seed_index"]) for n, c in zip(names, columns, strict=True)}

    return Measure(
        values,
        take,
        {"answers": {"rouge_score": version("rouge-score")}},
        "exact: share of answers that are held-out text's own; ROUGE-L: their longest common subsequence of words",
        {
            "exact_match": Column("exact", ".3f", interval=True),
            "rouge_l": Column("ROUGE-L", ".3f", interval=True),
        },
    )
