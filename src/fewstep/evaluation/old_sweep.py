"""A sweep over settings of the sampler: every text made, scored and measured under one protocol.

N samples a seed, L tokens.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.protocol import TO_FIRST_END, ScoringProtocol, canonical_json, differences
from fewstep.evaluation.row_file import RowFile
from fewstep.evaluation.scorers import ScoredText, Scorer, weights_digest
from fewstep.evaluation.sweep_measures import CommitmentProbe, Measures, TrainText, texts_of
from fewstep.evaluation.sweep_row import Setting, SweepRow
from fewstep.evaluation.sweep_texts import Batch, Made, TextGroup
from fewstep.model import SavedModel
from fewstep.readouts import tokens_to_first_end

DIGEST_DIGITS = 12


@dataclass(frozen=True)
class Scored:
    """One batch of texts of one setting: how it was made, ``mask`` (B, L) of the tokens that count, its scores, and its
    ``features`` (B, H) where MAUVE is measured."""

    setting: Setting
    batch: Batch
    made: Made
    mask: Tensor
    scores: ScoredText


class Sweep:
    """Makes and measures the texts of all groups.

    ``protocol`` says how many samples of which seeds; ``train`` is what copies are looked for in. Samples are made
    ``batch_size`` at a time, and whole batches are shared between ``processes``, so that their number changes no
    figure but the seconds. ``cci_examples``: the commitment head's CCI is measured on the first so many samples of the
    first seed, 0 for not at all. ``mauve``: what MAUVE compares with, None for not at all. ``grammar``: the law of the
    corpus, where it has one. ``provenance`` goes into every row. Raises ``UserError`` where a setting comes twice.
    """

    def __init__(
        self,
        bundle: SavedModel,
        scorer: Scorer,
        protocol: ScoringProtocol,
        groups: Sequence[TextGroup],
        train: TrainText,
        *,
        processes: Processes | None = None,
        batch_size: int = 64,
        cci_examples: int = 8,
        num_resamples: int = 1000,
        num_examples: int = 3,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.bundle = bundle
        self.scorer = scorer
        self.protocol = protocol
        self.groups = tuple(groups)
        self.processes = Processes() if processes is None else processes
        self.batch_size = batch_size
        self.cci_examples = cci_examples
        self.provenance = provenance
        self.model = model_digest(bundle)
        self.device = str(next(next(iter(bundle.parts().values())).parameters()).device)
        self.measures = Measures(train, num_resamples=num_resamples, num_examples=num_examples)
        settings = self.settings()
        if len(set(settings)) < len(settings):
            twice = next(setting for setting in settings if settings.count(setting) > 1)
            raise UserError(f"the setting {twice.label()} comes twice: name each only once")

    def settings(self) -> list[Setting]:
        """All settings in their order."""
        return [setting for group in self.groups for setting in group.settings]

    def caption(self) -> str:
        """What the numbers of a table are, in a few sentences."""
        protocol = self.protocol
        return (
            f"Perplexity under {self.scorer.name}, protocol {protocol.hash}; {protocol.num_samples} samples of "
            f"{protocol.block_size} tokens for each of {len(protocol.seeds)} seeds; 95 % bootstrap intervals over "
            "samples; entropy in nats a sample, on the scored tokens; noise is the factor on a step's old noise; NFE "
            "counts the passes of all networks; rep-4: 4-grams that a sample repeats; copy: longest piece of train "
            f"text in any sample, tokens; mem-8: 8-grams that the train text holds; tokens per second of one "
            f"process at batch size {self.batch_size} on {self.device}."
        )

    def finished(self, file: RowFile[SweepRow]) -> list[SweepRow]:
        """The rows that ``file`` holds already; an interrupted sweep resumes after them.

        Raises ``UserError``, in every process, where it cannot be read, or a row is of another protocol or model.
        """
        rows: list[SweepRow] = []
        problem = ""
        if self.processes.is_first:
            try:
                rows = file.read()
                self._check(rows, file)
            except UserError as error:
                problem = str(error)
        rows, problem = self.processes.from_first((rows, problem))
        if problem:
            raise UserError(problem)
        return rows

    def rows(self, done: Collection[Setting] = ()) -> Iterator[SweepRow]:
        """One row after the other, but for the settings that are ``done``; only the first process gives any.

        All processes must run through it.
        """
        for group in self.groups:
            settings = [setting for setting in group.settings if setting not in done]
            if not settings:
                continue
            scored = self.processes.gather(list(self._scored(group, settings)))
            if not self.processes.is_first:
                continue
            for setting in settings:
                parts = [part for part in scored if part.setting == setting]
                yield self._row(setting, sorted(parts, key=lambda part: (part.batch.seed_index, part.batch.first)))

    def batches(self) -> list[Batch]:
        """All batches, by seed and then by index."""
        count = self.protocol.num_samples
        return [
            Batch(index, seed, first, min(self.batch_size, count - first))
            for index, seed in enumerate(self.protocol.seeds)
            for first in range(0, count, self.batch_size)
        ]

    def _scored(self, group: TextGroup, settings: Sequence[Setting]) -> Iterator[Scored]:
        """What falls to this process."""
        share = self.processes.share(self.batches())
        if share:  # the first evaluation pays for warming up; it is not to be charged to a row
            group.make(replace(share[0], count=1), settings)
        for batch in share:
            for setting, made in zip(settings, group.make(batch, settings), strict=True):
                mask = self._counted(made)
                texts = texts_of(self.bundle.tokenizer, made.ids, mask)
                scores = self.scorer.score(texts, made.ids, mask)
                yield Scored(setting, batch, self._trimmed(made, batch), mask, scores)

    def _counted(self, made: Made) -> Tensor:
        """Which tokens count (B, L)."""
        full = torch.ones_like(made.ids, dtype=torch.bool) if made.mask is None else made.mask
        if made.mask is None and self.protocol.end_of_text == TO_FIRST_END:
            return tokens_to_first_end(made.ids, int(self.bundle.tokenizer.eos_token_id))
        return full

    def _trimmed(self, made: Made, batch: Batch) -> Made:
        """Without the latents that nothing more is asked of."""
        wanted = max(0, self.cci_examples - batch.first) if batch.seed_index == 0 else 0
        return replace(made, x_1=None if made.x_1 is None or not wanted else made.x_1[:wanted].clone())

    def _row(self, setting: Setting, parts: Sequence[Scored]) -> SweepRow:
        made = [part.made for part in parts]
        latents = [one.x_1 for one in made if one.x_1 is not None]
        probe = CommitmentProbe(self.bundle, torch.cat(latents), self.protocol.seeds[0]) if latents else None
        flips = [one.late_flips for one in made if one.late_flips is not None]
        seconds = [one.seconds for one in made if one.seconds is not None]
        ids = torch.cat([one.ids for one in made])
        mask = torch.cat([part.mask for part in parts])
        cci = None if probe is None else probe.measure(setting.readout)
        return SweepRow(
            setting=setting,
            num_samples=len(ids),
            seeds=self.protocol.seeds,
            **self.measures.of_scores([part.scores for part in parts], [part.batch.seed_index for part in parts]),
            **self.measures.of_tokens(ids, mask),
            mauve=None,
            late_flip_rate=float(torch.cat(flips).mean()) if flips else None,
            cci=None if cci is None else cci.value,
            cci_interval=None if cci is None else cci.interval,
            nfe=made[0].nfe,
            seconds=sum(seconds) if seconds else None,
            tokens_per_second=ids.numel() / sum(seconds) if seconds else None,
            batch_size=self.batch_size,
            device=self.device,
            protocol_hash=self.protocol.hash,
            protocol=self.protocol.to_dict(),
            model=self.model,
            examples=self.measures.examples(self.bundle.tokenizer, ids, mask),
            provenance=self.provenance,
        )

    def _check(self, rows: Sequence[SweepRow], file: RowFile[SweepRow]) -> None:
        seen: set[Setting] = set()
        for row in rows:
            if row.setting in seen:
                raise UserError(f"{file.file} holds the row {row.setting.label()} twice: take one out by hand")
            if row.protocol_hash != self.protocol.hash:
                found = "; ".join(differences(row.protocol, self.protocol.to_dict())[:3])
                raise UserError(
                    f"{file.file} holds rows of scoring protocol {row.protocol_hash}, this is {self.protocol.hash} "
                    f"({found}): their numbers do not compare; give another --out"
                )
            if row.model != self.model:
                raise UserError(
                    f"{file.file} holds rows of another model ({row.model}, this is {self.model}): give another --out"
                )
            seen.add(row.setting)


def model_digest(bundle: SavedModel) -> str:
    """12 hex digits that tell models apart: identity, architectures and weights of all parts."""
    weights = {name: weights_digest(part) for name, part in bundle.parts().items()}
    text = canonical_json([asdict(bundle.manifest()), weights])
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]
