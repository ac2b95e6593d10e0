"""Texts that samples are set beside: real ones, broken ones, and what readout and language model write by themselves.

B samples, L tokens, K latent positions, D latent dimension, V vocabulary.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.evaluation.baselines import shuffled_blocks, unigram_blocks
from fewstep.evaluation.sweep_row import HELD_OUT, NOISE, Setting
from fewstep.evaluation.sweep_texts import Batch, Made, TextGroup
from fewstep.model import SavedModel
from fewstep.shapes import example_generators, randn
from fewstep.types import TokenBatch


class FixedTexts:
    """Texts that are there already: ``ids`` (N, L), ``num_samples`` for the first seed, then those of the next.

    ``mask`` (N, L) is true where they are no padding; None: the blocks are full.
    """

    def __init__(self, name: str, ids: Tensor, mask: Tensor | None, num_samples: int) -> None:
        self.settings: tuple[Setting, ...] = (Setting(name),)
        self.ids = ids
        self.mask = mask
        self.num_samples = num_samples

    def make(self, batch: Batch, settings: Sequence[Setting]) -> list[Made]:
        """The batch's rows."""
        start = batch.seed_index * self.num_samples + batch.first
        rows = slice(start, start + batch.count)
        return [Made(self.ids[rows], None if self.mask is None else self.mask[rows]) for _ in settings]


class LanguageModelTexts:
    """What the run's language model writes at temperature 1, with its cache of keys and values."""

    def __init__(self, bundle: SavedModel) -> None:
        self.settings: tuple[Setting, ...] = (Setting("language model"),)
        self.model = bundle.scorer()
        self.block_size = bundle.identity.block_size

    def make(self, batch: Batch, settings: Sequence[Setting]) -> list[Made]:
        """Blocks of which each depends on the seed and its index alone; L forward passes each."""
        start = time.perf_counter()
        noise = example_generators(batch.seed, batch.first, batch.count)
        ids = self.model.generate(batch.count, self.block_size, generator=noise).ids.cpu()
        made = Made(ids, None, seconds=time.perf_counter() - start, nfe=self.block_size)
        return [made for _ in settings]


class NoiseTexts:
    """Standard normal latents, which no flow has touched, as the parallel readout reads them: the likeliest tokens.

    The floor of a sweep: a readout puts words together by itself, and a sampler that writes no better than this has
    done nothing for the text. This project's definition.
    """

    def __init__(self, bundle: SavedModel) -> None:
        self.settings: tuple[Setting, ...] = (Setting(NOISE),)
        self.reader, self.parts = bundle.reader(), bundle.parts()
        self.shape = bundle.latent_shape()

    @torch.no_grad()
    def make(self, batch: Batch, settings: Sequence[Setting]) -> list[Made]:
        """Blocks of which each depends on the seed and its index alone; one forward pass each."""
        start = time.perf_counter()
        noise = example_generators(batch.seed, batch.first, batch.count)
        z = randn((batch.count, *self.shape), next(self.parts["readout"].parameters()), noise)
        ids = self.reader.logits(z, torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)).argmax(-1).cpu()
        return [Made(ids, None, seconds=time.perf_counter() - start, nfe=1) for _ in settings]


def yardsticks(
    bundle: SavedModel, held_out: TokenBatch, train_counts: Tensor, num_samples: int, seed: int
) -> list[TextGroup]:
    """Held-out text (N, L), the same with its words shuffled, unigram draws from ``train_counts`` (V,), and where the
    model has the parts, pure noise as its parallel readout reads it, and its language model's samples. ``num_samples``
    of the N are of one seed.
    """
    shuffling, drawing = (example_generators(seed + offset, 0, 1)[0] for offset in (1, 2))
    shuffled = shuffled_blocks(held_out, bundle.tokenizer, shuffling)
    unigrams = unigram_blocks(train_counts, len(held_out.ids), held_out.ids.shape[1], drawing)
    groups: list[TextGroup] = [
        FixedTexts(HELD_OUT, held_out.ids, held_out.mask, num_samples),
        FixedTexts("words shuffled", shuffled.ids, shuffled.mask, num_samples),
        FixedTexts("unigram draws", unigrams.ids, None, num_samples),
    ]
    if bundle.readout is not None and bundle.autoencoder is not None:
        groups.append(NoiseTexts(bundle))
    if bundle.language_model is not None:
        groups.append(LanguageModelTexts(bundle))
    return groups
