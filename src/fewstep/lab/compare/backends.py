"""How the models of a comparison are measured: those of text and those of images. N samples, c numbers a sample."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.evaluation.measurements import FEW, measure_stiffness
from fewstep.evaluation.old_sweep import Sweep, model_digest
from fewstep.evaluation.protocol import ScoringProtocol
from fewstep.evaluation.scored_text import ScoredText, Scorer
from fewstep.evaluation.scoring import corpus_perplexity
from fewstep.evaluation.subject import make_subject
from fewstep.evaluation.sweep_measures import TrainText
from fewstep.evaluation.sweep_row import COLUMNS
from fewstep.evaluation.sweep_texts import FlowTexts, TextGroup, flow_setting
from fewstep.lab.compare.comparison import Compared, Quality
from fewstep.lab.images.row import COLUMNS as IMAGE_COLUMNS
from fewstep.lab.images.row import ImageRow
from fewstep.lab.images.sweep import BaseFlow, ImageSweep
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.samplers import FlowSampler, default_sampling, incompatibility
from fewstep.types import TokenBatch


class KeptScores:
    """A scorer that also keeps what it gave, batch after batch: a sweep's rows hold no scores of single samples."""

    def __init__(self, scorer: Scorer) -> None:
        self.name = scorer.name
        self.scorer = scorer
        self.given: list[ScoredText] = []

    def identity(self) -> dict[str, Any]:
        """That of the scorer inside."""
        return self.scorer.identity()

    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> ScoredText:
        """What the scorer inside says."""
        self.given.append(self.scorer.score(texts, ids, mask))
        return self.given[-1]

    def features(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> Tensor:
        """Those of the scorer inside."""
        return self.scorer.features(texts, ids, mask)

    def samples(self, index: int, of: int) -> tuple[tuple[float, ...], ...]:
        """Nats and tokens of every sample of the ``index``-th of ``of`` settings that were scored in turn."""
        return tuple(map(tuple, torch.cat([one.stacked() for one in self.given[index::of]]).tolist()))


SHOWN_ELSEWHERE = ("text", "readout", "reinjection", "noise", "K", "perplexity", "95 % interval", "late flips")
"""Columns of a sweep that a comparison has by itself."""


class TextBench:
    """Text models that go back to ``bundle`` and differ in the denoiser alone.

    ``protocol`` says how many samples of which seeds are scored by ``scorer``. ``beside`` are the yardsticks, real text
    first; ``train`` is what copies are looked for in, and ``held_out`` the text along whose noised latents stiffness is
    measured. All ``readouts`` read the same latents.
    """

    kind = "text"
    quality = Quality("perplexity", corpus_perplexity)

    def __init__(
        self,
        bundle: SavedModel,
        scorer: Scorer,
        protocol: ScoringProtocol,
        beside: Sequence[TextGroup],
        train: TrainText,
        held_out: TokenBatch,
        readouts: Sequence[str],
        *,
        device: str,
        batch_size: int = 64,
        cci_examples: int = 8,
    ) -> None:
        self.bundle = bundle
        self.scorer = scorer
        self.protocol = protocol
        self.beside = list(beside)
        self.train = train
        self.held_out = held_out
        self.readouts = tuple(readouts)
        self.device = device
        self.batch_size = batch_size
        self.cci_examples = cci_examples
        self.caption = self._sweep(bundle, scorer, []).caption()
        self._stiffness: tuple[Path, float | None] | None = None

    def stamp(self, folder: Path | None) -> str:
        """Hash of the protocol, and of the model in ``folder`` (None: the one that all go back to)."""
        return f"{self.protocol.hash} {model_digest(self.bundle if folder is None else self._load(folder))}"

    def incompatibility(self, folder: Path, num_steps: int, reinjection: float) -> str | None:
        """What :func:`fewstep.samplers.incompatibility` says."""
        generator = TextGenerator(self._load(folder))
        sampler = FlowSampler(
            generator.model.flow().path, grid=generator.model.identity.default_grid(), reinjection=reinjection
        )
        return incompatibility(generator.model.identity, sampler, num_steps)

    def rows(self, folder: Path, num_steps: int, reinjection: float) -> list[Compared]:
        """One row per readout, all of the same latents."""
        bundle = self._load(folder)
        group = own_texts(bundle, num_steps, reinjection, self.readouts)
        found = self._measured(bundle, group)
        peak = self._peak(folder, bundle)
        return [
            replace(row, readout=name, num_steps=num_steps, reinjection=reinjection, stiffness_peak=peak)
            for name, row in zip(self.readouts, found, strict=True)
        ]

    def yardsticks(self) -> list[Compared]:
        """Held-out text, its words shuffled, unigram draws, pure noise as it is read, and the language model's own."""
        names = [group.settings[0].name for group in self.beside]
        rows = [self._measured(self.bundle, group)[0] for group in self.beside]
        return [replace(row, objective=name) for name, row in zip(names, rows, strict=True)]

    def _measured(self, bundle: SavedModel, group: TextGroup) -> list[Compared]:
        kept, count = KeptScores(self.scorer), len(group.settings)
        swept = list(self._sweep(bundle, kept, [group]).rows())
        return [
            Compared(
                "",
                None,
                None,
                None,
                quality=row.perplexity,
                quality_interval=row.perplexity_interval,
                others=tuple(
                    (name, cell) for name, cell in zip(COLUMNS, row.cells(), strict=True) if name not in SHOWN_ELSEWHERE
                ),
                late_flip_rate=row.late_flip_rate,
                samples=kept.samples(index, count),
            )
            for index, row in enumerate(swept)
        ]

    def _sweep(self, bundle: SavedModel, scorer: Scorer, groups: Sequence[TextGroup]) -> Sweep:
        return Sweep(
            bundle,
            scorer,
            self.protocol,
            groups,
            self.train,
            batch_size=self.batch_size,
            cci_examples=self.cci_examples,
        )

    def _load(self, folder: Path) -> SavedModel:
        return SavedModel.from_pretrained(folder).to(self.device)

    def _peak(self, folder: Path, bundle: SavedModel) -> float | None:
        """Of the model, so asked for once a folder."""
        if self._stiffness is None or self._stiffness[0] != folder:
            count = min(FEW, int(self.held_out.mask.all(1).sum()))
            subject = make_subject(
                TextGenerator(bundle), self.held_out, num_examples=count, num_positions=1, seed=self.protocol.seeds[0]
            )
            self._stiffness = folder, measure_stiffness(subject)["stiffness_peak"].value
        return self._stiffness[1]


def own_texts(bundle: SavedModel, num_steps: int, reinjection: float, readouts: Sequence[str]) -> FlowTexts:
    """The model's own samples, all readouts of the same latents; whether the sampler fits was asked before."""
    return FlowTexts(TextGenerator(bundle), flow_setting(num_steps, f"{reinjection:g}"), readouts)


IMAGE_OTHERS = ("NFE", "FD pixels", "off the flow", "images / s", "N")
"""Columns of an image sweep that a comparison takes over."""
STIFFNESS_EXAMPLES = 16


def mean_over_seeds(samples: Tensor) -> Tensor:
    """Distances of seeds (R, N, 1) to their mean (R,)."""
    return samples.mean((-2, -1))


class ImageBench:
    """Image models on one autoencoder. ``base`` is the folder of the flow that all start from: images are compared with
    its own, and the yardstick, train images against held-out ones, is measured next to it.

    Quality is the Frechet distance in the autoencoder's latents, and a sample of it is one of ``seeds`` with
    ``num_samples`` images.
    """

    kind = "images"
    quality = Quality("Frechet distance", mean_over_seeds, of_seeds=True)
    readouts: tuple[str | None, ...] = (None,)

    def __init__(
        self, base: Path, num_samples: int, seeds: Sequence[int], *, device: str, batch_size: int = 64
    ) -> None:
        self.base = base
        self.num_samples = num_samples
        self.seeds = tuple(seeds)
        self.device = device
        self.batch_size = batch_size
        self._real: ImageRow | None = None
        self._base: BaseFlow | None = None

    @property
    def caption(self) -> str:
        """What the numbers are."""
        return self._sweep(self.base).caption()

    def stamp(self, folder: Path | None) -> str:
        """Hash of the protocol, and of the model; that of the yardstick holds the autoencoder's alone."""
        sweep = self._sweep(self.base if folder is None else folder)
        return f"{sweep.protocol_hash} {sweep.autoencoder if folder is None else sweep.digest}"

    def incompatibility(self, folder: Path, num_steps: int, reinjection: float) -> str | None:
        """What :func:`fewstep.samplers.incompatibility` says."""
        model = SavedModel.from_pretrained(folder, kind="images")
        model.require("denoiser", source=str(folder))
        identity = model.identity
        sampler = FlowSampler(model.flow().path, grid=identity.default_grid(), reinjection=reinjection)
        return incompatibility(identity, sampler, num_steps)

    def rows(self, folder: Path, num_steps: int, reinjection: float) -> list[Compared]:
        """One row."""
        real = self._yardstick()
        (row,) = self._sweep(folder, (num_steps, reinjection)).rows([real])
        return [replace(self._compared(row, real), num_steps=num_steps, reinjection=reinjection)]

    def yardsticks(self) -> list[Compared]:
        """Train images against held-out ones."""
        real = self._yardstick()
        return [replace(self._compared(real, real), objective=real.setting.name)]

    def _yardstick(self) -> ImageRow:
        if self._real is None:
            self._real = next(self._sweep(self.base).rows())
        return self._real

    def _compared(self, row: ImageRow, real: ImageRow) -> Compared:
        cells = zip(IMAGE_COLUMNS, row.cells(real), strict=True)
        return Compared(
            "",
            None,
            None,
            None,
            quality=row.latents,
            quality_interval=row.latents_interval,
            others=tuple((name, cell) for name, cell in cells if name in IMAGE_OTHERS),
            stiffness_peak=row.stiffness_peak,
            samples=tuple((value,) for value in row.latents_by_seed),
        )

    def _sweep(self, folder: Path, setting: tuple[int, float] | None = None) -> ImageSweep:
        """Of one setting, or of one that fits the model where only the protocol is asked for."""
        model = SavedModel.from_pretrained(folder, kind="images").to(self.device)
        if self._base is None:
            self._base = BaseFlow(SavedModel.from_pretrained(self.base, kind="images").to(self.device))
        own = default_sampling(model.identity, 1)
        num_steps, reinjection = setting or (own.num_steps, own.reinjection)
        return ImageSweep(
            model,
            (num_steps,),
            (reinjection,),
            num_samples=self.num_samples,
            seeds=self.seeds,
            base=self._base,
            stiffness_examples=STIFFNESS_EXAMPLES,
            batch_size=self.batch_size,
        )
