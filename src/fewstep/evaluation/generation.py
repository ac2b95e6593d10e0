"""Scores of generated text over numbers of steps and readouts, beside yardsticks of the same size."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.baselines import shuffled_blocks, unigram_blocks
from fewstep.evaluation.scoring import corpus_perplexity, perplexity_of_blocks, score_blocks
from fewstep.evaluation.table import GenerationRow, GenerationTable
from fewstep.metrics.intervals import bootstrap_interval
from fewstep.metrics.text import distinct_n, pooled_entropy_nats, unigram_entropy_nats
from fewstep.pipeline import TextGenerator, decode_blocks
from fewstep.readouts import LanguageModel, tokens_to_first_end
from fewstep.shapes import example_generators
from fewstep.types import TokenBatch

Progress = Callable[[int, int, str], object]
"""Called after each row as (rows done, rows in all, the row's label)."""


@dataclass(frozen=True)
class Sampled:
    """Text to score: ``tokens`` (N, L), and how it was made (None where that has no meaning)."""

    name: str
    tokens: TokenBatch
    readout: str | None = None
    num_steps: int | None = None
    reinjection: float | None = None
    nfe: int | None = None
    seconds: float | None = None


def evaluate_generation(
    generator: TextGenerator,
    held_out: TokenBatch,
    train_counts: Tensor,
    *,
    steps: Sequence[int] = (1, 2, 4, 8, 32),
    readouts: Sequence[str] = ("parallel", "head"),
    seed: int = 0,
    batch_size: int = 64,
    reinjections: Sequence[float] = (0.0,),
    num_resamples: int = 1000,
    num_examples: int = 3,
    progress: Progress | None = None,
) -> GenerationTable:
    """Score as many samples as there are blocks in ``held_out`` (N, L), for each of the settings.

    These are all of ``steps``, ``readouts`` and ``reinjections`` (strengths in [0, 1]) together.

    Yardsticks of the same N and L: held-out text, the same with its words shuffled, tokens drawn from ``train_counts``
    (V,), and the language model's own samples at temperature 1. All are scored by that language model
    (:func:`fewstep.evaluation.scoring.score_blocks`). Every token of a block counts, unless ``held_out`` holds padding
    (documents not packed): then generated blocks count up to their first end-of-text. The flow's noise is that of
    ``seed``, the same for each of its rows. Raises ``UserError`` for a missing part, and for blocks of another length
    than the model's.
    """
    bundle = generator.model
    bundle.require("language_model")
    if not len(held_out.ids) or held_out.ids.shape[1] != bundle.identity.block_size:
        raise UserError(
            f"held-out blocks of shape {tuple(held_out.ids.shape)}: expected at least one block of "
            f"{bundle.identity.block_size} tokens, the model's block size"
        )
    texts = ComparedTexts(generator, held_out, train_counts, seed, batch_size)
    total, rows = 4 + len(steps) * len(readouts) * len(reinjections), []
    for sampled in texts.all(steps, readouts, reinjections):
        resampling = torch.Generator().manual_seed(0)
        rows.append(score_sampled(sampled, generator, batch_size, num_resamples, resampling, num_examples))
        if progress is not None:
            made = f" {sampled.readout} K={sampled.num_steps} gamma={sampled.reinjection}"
            steps_made = "" if sampled.num_steps is None else made
            progress(len(rows), total, sampled.name + steps_made)
    return GenerationTable(
        rows=tuple(rows),
        block_size=bundle.identity.block_size,
        scorer="the run's language model",
        seed=seed,
        batch_size=batch_size,
        device=str(texts.device),
    )


class ComparedTexts:
    """Makes the texts of :func:`evaluate_generation`, one kind after the other."""

    def __init__(
        self, generator: TextGenerator, held_out: TokenBatch, train_counts: Tensor, seed: int, batch_size: int
    ) -> None:
        self.generator = generator
        self.held_out = held_out
        self.train_counts = train_counts
        self.seed = seed
        self.batch_size = batch_size
        self.device = next(generator.model.scorer().parameters()).device

    def all(self, steps: Sequence[int], readouts: Sequence[str], reinjections: Sequence[float]) -> Iterator[Sampled]:
        """The four yardsticks, then the flow by readout, strength of re-injection and number of steps."""
        yield from self.yardsticks()
        for readout in readouts:
            # The first evaluation pays for warming up; it is not to be charged to the first row.
            self.generator.generate(1, steps[0], self.seed, readout=readout)
            for reinjection in reinjections:
                for num_steps in steps:
                    yield self.flow(readout, num_steps, reinjection)

    def yardsticks(self) -> Iterator[Sampled]:
        """Held-out text, its words shuffled, unigram draws, the language model's samples."""
        num_samples, block_size = self.held_out.ids.shape
        bundle = self.generator.model
        shuffling, drawing = (example_generators(self.seed + offset, 0, 1)[0] for offset in (1, 2))
        yield Sampled("held-out text", self.held_out)
        yield Sampled("words shuffled", shuffled_blocks(self.held_out, bundle.tokenizer, shuffling))
        unigrams = unigram_blocks(self.train_counts, num_samples, block_size, drawing)
        yield Sampled("unigram draws", self.counted(unigrams.ids))
        scorer, seed = bundle.scorer(), self.seed + 3
        sample_language_model(scorer, 1, block_size, seed=seed, batch_size=1)  # warm up, as in `all`
        start = time.perf_counter()
        ids = sample_language_model(scorer, num_samples, block_size, seed=seed, batch_size=self.batch_size)
        yield Sampled("language model", self.counted(ids), seconds=time.perf_counter() - start)

    def flow(self, readout: str, num_steps: int, reinjection: float) -> Sampled:
        """The model's own samples."""
        made = self.generator.generate(
            len(self.held_out.ids),
            num_steps,
            self.seed,
            readout=readout,
            reinjection=reinjection,
            batch_size=self.batch_size,
        )
        return Sampled("flow", self.counted(made.ids), readout, num_steps, reinjection, made.nfe, made.seconds)

    def counted(self, ids: Tensor) -> TokenBatch:
        """``ids`` (N, L) with the mask of the tokens that count."""
        if bool(self.held_out.mask.all()):
            return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
        return TokenBatch(ids, tokens_to_first_end(ids, int(self.generator.model.tokenizer.eos_token_id)))


def score_sampled(
    sampled: Sampled,
    generator: TextGenerator,
    batch_size: int,
    num_resamples: int,
    resampling: torch.Generator,
    num_examples: int,
) -> GenerationRow:
    """One row of the table; ``resampling`` draws the bootstrap's resamples of whole samples."""
    ids, mask = sampled.tokens.ids, sampled.tokens.mask
    scores = score_blocks(generator.model.scorer(), ids, mask, batch_size=batch_size).stacked()
    shown = [block[seen] for block, seen in zip(ids[:num_examples], mask, strict=False)]
    return GenerationRow(
        name=sampled.name,
        readout=sampled.readout,
        num_steps=sampled.num_steps,
        reinjection=sampled.reinjection,
        nfe=sampled.nfe,
        num_samples=len(ids),
        perplexity=perplexity_of_blocks(scores),
        perplexity_interval=bootstrap_interval(scores, corpus_perplexity, num_resamples, resampling, batched=True),
        entropy_nats=unigram_entropy_nats(ids, mask),
        pooled_entropy_nats=pooled_entropy_nats(ids, mask),
        distinct_2=distinct_n(ids, 2, mask),
        # Time is spent on whole blocks, whatever part of them counts.
        seconds_per_1000_tokens=None if sampled.seconds is None else 1000 * sampled.seconds / ids.numel(),
        examples=tuple(decode_blocks(generator.model.tokenizer, block[None])[0] for block in shown),
    )


def sample_language_model(
    model: LanguageModel, num_samples: int, block_size: int, *, seed: int, batch_size: int
) -> Tensor:
    """Blocks (N, L) int64 drawn at temperature 1; block i depends on ``seed`` and i alone."""
    blocks = []
    for first in range(0, num_samples, batch_size):
        generators = example_generators(seed, first, min(batch_size, num_samples - first))
        blocks.append(model.generate(len(generators), block_size, generator=generators).ids.cpu())
    return torch.cat(blocks)
