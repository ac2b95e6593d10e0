"""What a sweep measures on the texts of one setting. N samples, L tokens, K latent positions, D latent dimension."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.diagnostics.result import Estimate
from fewstep.evaluation.adapters import cci_as_read
from fewstep.evaluation.scorers import ScoredText
from fewstep.evaluation.scoring import corpus_perplexity, perplexity_of_blocks
from fewstep.evaluation.subject import noise_source
from fewstep.evaluation.sweep_texts import head_conditionals
from fewstep.metrics.intervals import bootstrap_interval
from fewstep.metrics.text import distinct_n, longest_copies, match_lengths, memorised_share, repeated_ngrams
from fewstep.model import SavedModel
from fewstep.pipeline import decode_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MEMORISED = 8
"""Length of the n-grams that are looked for in the train text."""
REPEATED = 4
"""Length of the n-grams that are counted within a sample."""


class TrainText:
    """The train text as one stream of tokens (T,); copies of up to ``max_length`` tokens are looked for in it."""

    def __init__(self, stream: Tensor, max_length: int) -> None:
        self.stream = stream
        self.max_length = max_length

    def match_lengths(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Length of the longest piece of train text that starts at each token of ``ids`` (N, L)."""
        return match_lengths(self.stream, ids, mask, max_length=max(self.max_length, MEMORISED))


class Measures:
    """The numbers of a row that do not depend on how its texts were made.

    ``train`` is the train text that copies are looked for in; intervals come from ``num_resamples`` resamples of whole
    samples; a row shows its first ``num_examples`` texts.
    """

    def __init__(self, train: TrainText, *, num_resamples: int = 1000, num_examples: int = 3) -> None:
        self.train = train
        self.num_resamples = num_resamples
        self.num_examples = num_examples

    def of_scores(self, scores: Sequence[ScoredText], seed_indices: Sequence[int]) -> dict[str, Any]:
        """Perplexity and entropy with their intervals; ``scores`` are those of batches, each of the seed beside it."""
        stacked = torch.cat([score.stacked() for score in scores])
        entropies = torch.cat([score.entropies_nats for score in scores])
        by_seed = [
            torch.cat([score.stacked() for score, owner in zip(scores, seed_indices, strict=True) if owner == index])
            for index in dict.fromkeys(seed_indices)
        ]
        perplexity = _perplexity(stacked)
        return {
            "perplexity": perplexity,
            "perplexity_interval": None
            if perplexity is None
            else self._interval(_scored_only(stacked), corpus_perplexity),
            "perplexity_by_seed": tuple(map(_perplexity, by_seed)),
            "entropy_nats": float(entropies.mean()),
            "entropy_interval": self._interval(entropies, lambda rows: rows.mean(-1)),
            "scored_tokens": int(stacked[:, 1].sum()),
        }

    def of_tokens(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Repetition and copies, on the model's own tokens ``ids`` (N, L) where ``mask`` (N, L) is true."""
        lengths = self.train.match_lengths(ids, mask)
        copies = longest_copies(lengths)
        return {
            **{f"distinct_{n}": _where_there_are(n, distinct_n, ids, mask) for n in (1, 2, 4)},
            "repeated_4grams": _where_there_are(REPEATED, repeated_ngrams, ids, mask),
            "longest_copy_tokens": int(copies.max()),
            "mean_copy_tokens": float(copies.double().mean()),
            "memorised_8grams": _where_there_are(MEMORISED, memorised_share, lengths, mask),
        }

    def examples(self, tokenizer: "PreTrainedTokenizerFast", ids: Tensor, mask: Tensor) -> tuple[str, ...]:
        """The first few texts."""
        return tuple(texts_of(tokenizer, ids[: self.num_examples], mask[: self.num_examples]))

    def _interval(self, values: Tensor, statistic: Callable[[Tensor], Tensor]) -> Any:
        resampling = torch.Generator().manual_seed(0)
        return bootstrap_interval(values, statistic, self.num_resamples, resampling, batched=True)


class CommitmentProbe:
    """CCI at generated latents ``x_1`` (B, K, D), which are blurred as the head blurs what it reads."""

    def __init__(self, bundle: SavedModel, x_1: Tensor, seed: int) -> None:
        self.bundle = bundle
        self.x_1 = x_1
        self.seed = seed

    def measure(self, readout: str | None) -> Estimate | None:
        """CCI of the readout's head; None for a readout without one."""
        head = head_conditionals(self.bundle, readout)
        if head is None:
            return None
        z = self.x_1.to(next(head.head.parameters()).device)
        return cci_as_read(head, z, noise_source(self.seed, "cci"))["cci"]


def texts_of(tokenizer: "PreTrainedTokenizerFast", ids: Tensor, mask: Tensor) -> list[str]:
    """The texts of ``ids`` (N, L) where ``mask`` (N, L) is true."""
    return [decode_blocks(tokenizer, row[seen][None])[0] for row, seen in zip(ids, mask, strict=True)]


def _perplexity(stacked: Tensor) -> float | None:
    return perplexity_of_blocks(stacked) if bool((stacked[:, 1] > 0).any()) else None


def _scored_only(stacked: Tensor) -> Tensor:
    """Samples of which nothing is scored change no corpus perplexity; a resample of such alone would have none."""
    return stacked[stacked[:, 1] > 0]


def _where_there_are(n: int, measure: Callable[[Tensor, int, Tensor], float], of: Tensor, mask: Tensor) -> float | None:
    """``measure(of, n, mask)``, (N, L) both, or None where no sample has ``n`` tokens in a row that count."""
    if of.shape[1] < n or not bool(mask.unfold(1, n, 1).all(-1).any()):
        return None
    return measure(of, n, mask)
