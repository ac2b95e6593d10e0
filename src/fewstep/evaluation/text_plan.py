"""Plans of sweeps over sampled text: real text, protocol, measures and groups of one study."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.data.batches import spread_rows
from fewstep.data.corpus import PreparedCorpus
from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks, shuffled_blocks, train_stream, unigram_blocks
from fewstep.evaluation.matched import KEPT
from fewstep.evaluation.measures import MEASURES, PROMPTS
from fewstep.evaluation.rows import HELD_OUT, SHUFFLED, Setting
from fewstep.evaluation.scorers import Scorer, texts_of
from fewstep.evaluation.sweep import Batch, Group, Plan, Samples, model_digest
from fewstep.evaluation.texts import fixed_group, known_tokens, language_model_group, noise_group, read_back_group
from fewstep.model import SavedModel
from fewstep.provenance import versions
from fewstep.readouts import tokens_to_first_end
from fewstep.shapes import example_generators
from fewstep.types import KnownTokens, TokenBatch

if TYPE_CHECKING:
    from datasets import Dataset

NUM_EXAMPLES = 3
WHOLE_BLOCK = "every token of a block counts, ends of text among them"
TO_FIRST_END = "a block counts up to its first end of text, that included"


@dataclass(frozen=True)
class RealText:
    """The text that samples are compared with.

    ``held_out`` (N, L), one block for each sample; ``other``: as many different blocks, None where there are fewer;
    ``train`` (T,) the tokens of the train split; ``packed``: generated blocks count as a whole, else to their first end
    of text. ``source`` and ``fingerprint`` name the corpus. ``given`` (N, L) bool is true at tokens of held-out text
    that stand in every sample, by ``given_rule``; None: nothing is given.
    """

    held_out: TokenBatch
    other: TokenBatch | None
    train: Tensor
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
    packed: bool | None,
    prompt_tokens: int = 0,
    infill_tokens: int = 0,
) -> RealText:
    """``count`` held-out blocks spread evenly over ``corpus``, as many others where there are, and its train text.

    ``packed``: blocks without padding; None takes blocks as they come, and lets generated ones count as a whole where
    none of these is padded. Samples are given the first ``prompt_tokens`` of each text, or all but ``infill_tokens`` in
    its middle; without these the prompts of pairs. Raises ``UserError`` for too few blocks that are long enough.
    """

    def blocks(split: "Dataset") -> TokenBatch:
        tokens = held_out_blocks(split, min(count + 1, len(split)) if packed else count)  # one of them may be padded
        full = tokens.mask.all(1) if packed else torch.ones(count, dtype=torch.bool)
        return TokenBatch(tokens.ids[full][:count], tokens.mask[full][:count])

    validation = corpus.validation
    if prompt_tokens or infill_tokens:
        validation = long_texts(validation, prompt_tokens + 1 if prompt_tokens else infill_tokens + 2, count)
    length, held_out = len(validation), blocks(validation)
    if len(held_out.ids) < count:
        raise UserError(
            f"{count} samples of all seeds: the held-out text has {len(held_out.ids)} full blocks to compare with; "
            "ask for fewer samples or seeds"
        )
    taken = set(spread_rows(length, min(count + 1, length) if packed else count).tolist())
    rest = validation.select([row for row in range(length) if row not in taken])
    other = blocks(rest) if len(rest) >= count else None
    given, rule = None, ""
    if prompt_tokens:
        given, rule = first_tokens(held_out, prompt_tokens), f"the first {prompt_tokens} tokens"
    elif infill_tokens:
        given, rule = around_gap(held_out, infill_tokens), f"all but {infill_tokens} tokens in the middle"
    elif "prompt" in validation.column_names:
        prompts = torch.as_tensor(validation["prompt"][:])[torch.from_numpy(spread_rows(length, count))]
        given, rule = first_tokens(held_out, prompts), PROMPTS
    return RealText(
        held_out,
        other if other is not None and len(other.ids) == count else None,
        train_stream(corpus.train),
        bool(held_out.mask.all()) if packed is None else packed,
        source,
        corpus.fingerprint,
        given,
        rule,
    )


def first_tokens(tokens: TokenBatch, count: int | Tensor) -> Tensor:
    """Mask (N, L) of the first ``count`` tokens of every text: a number, or one for each text (N,)."""
    sizes = torch.as_tensor(count).reshape(-1, 1)
    return (torch.arange(tokens.ids.shape[1]) < sizes).expand_as(tokens.mask)


def around_gap(tokens: TokenBatch, count: int) -> Tensor:
    """Mask (N, L) of all but ``count`` tokens in the middle of every text, what stands behind its end included."""
    place, start = torch.arange(tokens.ids.shape[1]), (tokens.mask.sum(1, keepdim=True) - count) // 2
    return (place < start) | (place >= start + count)


def long_texts(validation: "Dataset", least_tokens: int, count: int) -> "Dataset":
    """The blocks of a split whose texts have ``least_tokens``. Raises ``UserError`` for fewer than ``count``."""
    rows = [row for row, length in enumerate(validation["length"][:]) if length >= least_tokens]
    if len(rows) < count:
        raise UserError(
            f"{count} samples of all seeds: {len(rows)} held-out texts have the {least_tokens} tokens that prompt or "
            "gap need; ask for fewer samples or seeds, or for fewer tokens"
        )
    return validation.select(rows)


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

    @property
    def known(self) -> KnownTokens | None:
        """What samples are given of held-out text (N, L); None: nothing."""
        return None if self.real.given is None else KnownTokens(self.real.held_out.ids, self.real.given)

    def yardsticks(self, language_model_offset: int = 0, temperatures: Sequence[float] = ()) -> list[Group]:
        """Held-out text, the same with its words shuffled, unigram draws, and where the model has the parts, decoded
        noise, held-out text's latents as they are read, and samples of the language model, these at ``temperatures``
        too. What is given stands in all of them, but for noise and latents, which are left out then.
        """
        bundle, real, known = self.bundle, self.real, self.known
        shuffling, drawing = (example_generators(offset, 0, 1)[0] for offset in (1, 2))
        shuffled = shuffled_blocks(real.held_out, bundle.tokenizer, shuffling, real.given)
        num_blocks, block_size = real.held_out.ids.shape
        unigrams = unigram_blocks(real.train, num_blocks, block_size, drawing)
        if known is not None:
            unigrams = TokenBatch(torch.where(known.mask, known.ids, unigrams.ids), unigrams.mask)
        groups = [
            fixed_group(HELD_OUT, real.held_out),
            fixed_group(SHUFFLED, shuffled),
            fixed_group("unigram draws", unigrams, padded=False),
        ]
        if bundle.readout is not None and bundle.autoencoder is not None and known is None:
            groups += [noise_group(bundle), read_back_group(bundle, real.held_out)]
        if bundle.language_model is not None:
            groups.append(language_model_group(bundle, language_model_offset, temperatures, known))
        return groups

    def plan(
        self,
        groups: Sequence[Group],
        measures: Collection[str] = tuple(MEASURES),
        provenance: dict[str, Any] | None = None,
    ) -> Plan:
        """A sweep over ``groups``, measured by those of ``measures`` that apply."""
        chosen = [measure for name in measures if (measure := MEASURES[name](self)) is not None]
        device = str(self.bundle.device)
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
            examples=self._examples,
            keep=KEPT,
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
        counted, known = [], known_tokens(self.known, batch)
        for samples in make(batch, settings):
            ids = samples.tensors["ids"]
            text = torch.ones_like(ids, dtype=torch.bool)
            if "mask" in samples.tensors:
                text = samples.tensors["mask"]
            elif not self.real.packed:
                text = tokens_to_first_end(ids, int(self.bundle.tokenizer.eos_token_id))
            mask = text if known is None else text & ~known.mask
            counted.append(replace(samples, tensors={**samples.tensors, "text": text, "mask": mask}))
        return counted

    def _examples(self, samples: Samples) -> list[str]:
        shown = (samples.tensors[name][:NUM_EXAMPLES] for name in ("ids", "text"))
        return texts_of(self.bundle.tokenizer, *shown)
