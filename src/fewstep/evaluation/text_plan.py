"""Plans of sweeps over sampled text: real text, protocol, measures and groups of one study."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.data import PreparedCorpus
from fewstep.data.batches import spread_rows
from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks, token_counts, train_stream
from fewstep.evaluation.measures import MEASURES, texts_of
from fewstep.evaluation.rows import Setting
from fewstep.evaluation.scorers import Scorer
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, model_digest
from fewstep.evaluation.texts import yardsticks
from fewstep.model import SavedModel
from fewstep.provenance import versions
from fewstep.readouts import tokens_to_first_end
from fewstep.types import TokenBatch

NUM_EXAMPLES = 3
WHOLE_BLOCK = "every token of a block counts, ends of text among them"
TO_FIRST_END = "a block counts up to its first end of text, that included"


@dataclass(frozen=True)
class RealText:
    """The text that samples are compared with.

    ``held_out`` (N, L), one block for each sample; ``other``: as many different blocks, None where there are fewer;
    ``train`` (T,) the tokens of the train split and ``counts`` (V,) how often each occurs; ``packed``: generated blocks
    count as a whole, else to their first end of text. ``source`` and ``fingerprint`` name the corpus.
    """

    held_out: TokenBatch
    other: TokenBatch | None
    train: Tensor
    counts: Tensor
    packed: bool
    source: str
    fingerprint: str


def real_text(
    corpus: PreparedCorpus, source: str, count: int, *, packed: bool | None = True, others: bool = False
) -> RealText:
    """``count`` held-out blocks spread evenly over ``corpus``, and its train text.

    ``packed``: blocks without padding; None takes blocks as they come, and lets generated ones count as a whole where
    none of these is padded. ``others``: as many different blocks too. Raises ``UserError`` for too few blocks.
    """
    length, spare = len(corpus.validation), int(packed is True)
    picked = min(count + spare, length) if spare else count  # the last block of a packed split may be padded
    held_out = held_out_blocks(corpus.validation, picked)[0]
    other = None
    if packed:
        held_out = _full(held_out, count)
        if len(held_out.ids) < count:
            raise UserError(
                f"{count} samples of all seeds: the held-out text has {len(held_out.ids)} full blocks to compare with; "
                "ask for fewer samples or seeds"
            )
    if others:
        taken = set(spread_rows(length, picked).tolist())
        rest = corpus.validation.select([row for row in range(length) if row not in taken])
        if len(rest) >= count:
            other = held_out_blocks(rest, min(count + spare, len(rest)))[0]
            other = _full(other, count) if packed else other
            other = other if len(other.ids) == count else None
    return RealText(
        held_out,
        other,
        train_stream(corpus.train),
        token_counts(corpus.train, corpus.report.vocabulary),
        bool(held_out.mask.all()) if packed is None else packed,
        source,
        corpus.fingerprint,
    )


def _full(tokens: TokenBatch, count: int) -> TokenBatch:
    full = tokens.mask.all(1)
    return TokenBatch(tokens.ids[full][:count], tokens.mask[full][:count])


@dataclass(frozen=True)
class TextStudy:
    """What sweeps over one model's text have in common: ``num_samples`` for each of ``seeds``, under one ``scorer``.

    ``cci_examples``: samples on which the head's CCI is measured. ``mauve`` needs the package mauve-text.
    """

    bundle: SavedModel
    scorer: Scorer
    real: RealText
    num_samples: int
    seeds: tuple[int, ...]
    batch_size: int = 64
    cci_examples: int = 8
    mauve: bool = False
    num_resamples: int = 1000

    def yardsticks(self, language_model_offset: int = 0, temperatures: Sequence[float] = ()) -> list[Group]:
        """Real text, and what readout and language model write by themselves, the latter at ``temperatures`` too."""
        return yardsticks(
            self.bundle,
            self.real.held_out,
            self.real.counts,
            self.num_samples,
            language_model_offset=language_model_offset,
            temperatures=temperatures,
        )

    def measures(self, names: Collection[str] = tuple(MEASURES)) -> list[Measure]:
        """The measures of these names that apply."""
        applied = [MEASURES[name](self) for name in names]
        return [measure for measure in applied if measure is not None]

    def plan(
        self,
        groups: Sequence[Group],
        measures: Collection[str] = tuple(MEASURES),
        *,
        keep: Collection[str] = (),
        provenance: dict[str, Any] | None = None,
    ) -> Plan:
        """A sweep over ``groups``, measured by ``measures``."""
        chosen = self.measures(measures)
        device = str(next(next(iter(self.bundle.parts().values())).parameters()).device)
        block_size = self.bundle.identity.block_size
        plan = Plan(
            groups=[replace(group, make=partial(self._counted, group.make)) for group in groups],
            measures=chosen,
            protocol={
                "scorer": self.scorer.identity(),
                "block_size": block_size,
                "end_of_text": WHOLE_BLOCK if self.real.packed else TO_FIRST_END,
                "versions": versions("transformers", "tokenizers", "numpy"),
                "corpus": self.real.fingerprint,
                "held_out": "spread evenly over the validation split",
                "language_model_temperature": 1.0,
            },
            num_samples=self.num_samples,
            seeds=self.seeds,
            model=model_digest(self.bundle),
            batch_size=self.batch_size,
            device=device,
            num_resamples=self.num_resamples,
            examples=self._examples,
            keep=keep,
            provenance=provenance,
        )
        samples = f"{self.num_samples} samples of {block_size} tokens for each of {len(self.seeds)} seeds"
        captions = [measure.caption for measure in chosen if measure.caption]
        speed = f"tokens per second of one process at batch size {self.batch_size} on {device}."
        return replace(plan, caption="; ".join([f"Protocol {plan.protocol_hash}: {samples}", *captions, speed]))

    def _counted(
        self, make: Callable[[Batch, Sequence[Setting]], list[Samples]], batch: Batch, settings: Sequence[Setting]
    ) -> list[Samples]:
        """The samples with their ``mask`` of the tokens that count."""
        return [
            replace(samples, tensors={"mask": self._mask(samples), **samples.tensors})
            for samples in make(batch, settings)
        ]

    def _mask(self, samples: Samples) -> Tensor:
        ids = samples.tensors["ids"]
        if self.real.packed:
            return torch.ones_like(ids, dtype=torch.bool)
        return tokens_to_first_end(ids, int(self.bundle.tokenizer.eos_token_id))

    def _examples(self, samples: Samples) -> list[str]:
        shown = (samples.tensors[name][:NUM_EXAMPLES] for name in ("ids", "mask"))
        return texts_of(self.bundle.tokenizer, *shown)
