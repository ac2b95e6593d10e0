"""Plans of sweeps over sampled text: real text, protocol, measures and groups of one study."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.data import PreparedCorpus
from fewstep.data.batches import spread_rows
from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks, token_counts, train_stream
from fewstep.evaluation.given import PROMPTS, KnownOf, around_gap, first_tokens, known_of
from fewstep.evaluation.measures import MEASURES
from fewstep.evaluation.rows import Setting
from fewstep.evaluation.scorers import Scorer, texts_of
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, model_digest
from fewstep.evaluation.texts import yardsticks
from fewstep.model import SavedModel
from fewstep.provenance import versions
from fewstep.readouts import tokens_to_first_end
from fewstep.types import TokenBatch

if TYPE_CHECKING:
    from datasets import Dataset

NUM_EXAMPLES = 3
WHOLE_BLOCK = "every token of a block counts, ends of text among them"
TO_FIRST_END = "a block counts up to its first end of text, that included"


@dataclass(frozen=True)
class RealText:
    """The text that samples are compared with.

    ``held_out`` (N, L), one block for each sample; ``other``: as many different blocks, None where there are fewer;
    ``train`` (T,) the tokens of the train split and ``counts`` (V,) how often each occurs; ``packed``: generated blocks
    count as a whole, else to their first end of text. ``source`` and ``fingerprint`` name the corpus. ``given`` (N, L)
    bool is true at tokens of held-out text that stand in every sample, by ``given_rule``; None: nothing is given.
    """

    held_out: TokenBatch
    other: TokenBatch | None
    train: Tensor
    counts: Tensor
    packed: bool
    source: str
    fingerprint: str
    given: Tensor | None = None
    given_rule: str = ""


def real_text(
    corpus: PreparedCorpus,
    source: str,
    count: int,
    *,
    packed: bool | None = True,
    others: bool = False,
    prompt_tokens: int = 0,
    infill_tokens: int = 0,
) -> RealText:
    """``count`` held-out blocks spread evenly over ``corpus``, and its train text.

    ``packed``: blocks without padding; None takes blocks as they come, and lets generated ones count as a whole where
    none of these is padded. ``others``: as many different blocks too. Samples are given the first ``prompt_tokens`` of
    each text, or all but ``infill_tokens`` in its middle; without these the prompts of pairs. Raises ``UserError`` for
    too few blocks that are long enough.
    """
    validation = long_texts(corpus.validation, max(prompt_tokens + 1, infill_tokens + 2 if infill_tokens else 1), count)
    length, spare = len(validation), int(packed is True)
    picked = min(count + spare, length) if spare else count  # the last block of a packed split may be padded
    held_out = held_out_blocks(validation, picked)[0]
    prompts = None
    if "prompt" in validation.column_names:
        prompts = torch.as_tensor(validation["prompt"][:])[torch.from_numpy(spread_rows(length, picked))]
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
        rest = validation.select([row for row in range(length) if row not in taken])
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
        *given_part(held_out, prompt_tokens, infill_tokens, prompts),
    )


def long_texts(validation: "Dataset", least_tokens: int, count: int) -> "Dataset":
    """The blocks of a split whose texts have ``least_tokens``. Raises ``UserError`` for fewer than ``count``."""
    if least_tokens == 1:
        return validation
    rows = [row for row, length in enumerate(validation["length"][:]) if length >= least_tokens]
    if len(rows) < count:
        raise UserError(
            f"{count} samples of all seeds: {len(rows)} held-out texts have the {least_tokens} tokens that prompt or "
            "gap need; ask for fewer samples or seeds, or for fewer tokens"
        )
    return validation.select(rows)


def given_part(
    held_out: TokenBatch, prompt_tokens: int, infill_tokens: int, prompts: Tensor | None
) -> tuple[Tensor | None, str]:
    """What is given of held-out texts (N, L), and how a table says it; ``prompts`` (N,) tokens of pairs."""
    if prompt_tokens:
        return first_tokens(held_out, prompt_tokens), f"the first {prompt_tokens} tokens"
    if infill_tokens:
        return around_gap(held_out, infill_tokens), f"all but {infill_tokens} tokens in the middle"
    return (None, "") if prompts is None else (first_tokens(held_out, prompts), PROMPTS)


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
            given=self.real.given,
        )

    @property
    def known(self) -> KnownOf | None:
        """What samples are given of held-out text, batch by batch; None: nothing."""
        if self.real.given is None:
            return None
        return known_of(self.real.held_out, self.real.given, self.num_samples)

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
        """The samples with ``text``, the tokens of a text, and ``mask``, those that count: all that are not given."""
        counted = []
        for samples in make(batch, settings):
            text = samples.tensors.get("mask", self._text(samples.tensors["ids"]))
            mask = text if self.known is None else text & ~self.known(batch).mask
            counted.append(replace(samples, tensors={**samples.tensors, "text": text, "mask": mask}))
        return counted

    def _text(self, ids: Tensor) -> Tensor:
        if self.real.packed:
            return torch.ones_like(ids, dtype=torch.bool)
        return tokens_to_first_end(ids, int(self.bundle.tokenizer.eos_token_id))

    def _examples(self, samples: Samples) -> list[str]:
        shown = (samples.tensors[name][:NUM_EXAMPLES] for name in ("ids", "text"))
        return texts_of(self.bundle.tokenizer, *shown)
