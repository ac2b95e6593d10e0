"""The image control over steps and re-injection: how far generated images are from real ones.

N images a seed, K steps. No network that was trained on photographs is asked: the features are the model's own latents,
and pixels.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.diagnostics.stiffness import stiffness
from fewstep.errors import UserError
from fewstep.evaluation.adapters import velocity_of
from fewstep.evaluation.protocol import HASH_DIGITS, canonical_json
from fewstep.evaluation.scorers import weights_digest
from fewstep.evaluation.subject import noise_source
from fewstep.lab.images.generator import GeneratedImages, ImageGenerator, image_autoencoder, images_of
from fewstep.lab.images.row import YARDSTICK, ImageRow, ImageSetting
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.intervals import mean_interval
from fewstep.model import SavedModel
from fewstep.provenance import versions
from fewstep.samplers import FlowSampler, incompatibility
from fewstep.shapes import example_generators, randn

POOLED = 8
"""Pixels a side that the average pool leaves, at most."""
MAX_STATES = 8
"""States of a trajectory at which stiffness is measured, at most, evenly spread."""
NUM_ITERATIONS = 20
"""Of the power iteration for stiffness."""


@dataclass(frozen=True)
class BaseFlow:
    """What images are compared with one by one: the flow of ``model``, followed in ``num_steps`` steps without fresh
    noise, for the first ``num_samples`` images of the first seed."""

    model: SavedModel
    num_steps: int = 64
    num_samples: int = 64


class ImageSweep:
    """Makes and measures the images of one model, called ``name`` (by default after its objective).

    ``num_samples`` images for each of ``seeds``, at every number of ``steps`` and strength of ``reinjections`` that
    the model was trained for (:func:`fewstep.samplers.incompatibility`). ``base`` is a flow on the same autoencoder.
    Stiffness is measured on ``stiffness_examples`` images of a row, 0 for not at all. Raises ``UserError``
    for a model without a flow, a base on other latents, too many samples for the yardstick, and where nothing fits.
    """

    def __init__(
        self,
        model: SavedModel,
        steps: Sequence[int] = (1, 2, 4, 8, 32),
        reinjections: Sequence[float] = (0.0, 1.0),
        *,
        name: str | None = None,
        num_samples: int = 512,
        seeds: Sequence[int] = (0, 1, 2),
        base: BaseFlow | None = None,
        stiffness_examples: int = 0,
        batch_size: int = 64,
    ) -> None:
        identity, path, grid = model.identity, model.flow().path, model.identity.default_grid()
        self.model, self.base, self.seeds = model, base, tuple(dict.fromkeys(seeds))
        self.num_samples, self.batch_size, self.stiffness_examples = num_samples, batch_size, stiffness_examples
        if not 2 <= num_samples <= images_of(model).num_train or not self.seeds:
            raise UserError(
                f"{num_samples} samples for seeds {self.seeds}: expected at least 1 seed and a number from 2 to "
                f"{images_of(model).num_train}, the train images of the yardstick"
            )
        asked = dict.fromkeys((count, float(gamma)) for gamma in reinjections for count in steps)
        self.settings = tuple(
            ImageSetting(name or identity.objective or "flow", count, gamma)
            for count, gamma in asked
            if incompatibility(identity, FlowSampler(path, grid=grid, reinjection=gamma), count) is None
        )
        if not self.settings:
            raise UserError(f"{identity.objective} was trained for none of steps {steps}, re-injection {reinjections}")
        self.autoencoder = weights_digest(image_autoencoder(model))[:HASH_DIGITS]
        self.digest = _hash(
            [asdict(model.manifest()), {name: weights_digest(part) for name, part in model.parts().items()}]
        )
        if base is not None and weights_digest(image_autoencoder(base.model))[:HASH_DIGITS] != self.autoencoder:
            raise UserError("the base flow is on another autoencoder: the same noise means other images there")
        self.protocol = self._protocol()
        self.protocol_hash = _hash(self.protocol)
        self._reference: tuple[Moments, Moments] | None = None
        self._base_images: Tensor | None = None

    def _protocol(self) -> dict[str, Any]:
        identity, base = self.model.identity, self.base
        return {
            "num_samples": self.num_samples,
            "seeds": list(self.seeds),
            "data": {identity.source: identity.source_config},
            "reference": "all held-out images, encoded and decoded",
            "autoencoder": self.autoencoder,
            "features": f"whitened latents; pixels pooled to at most {POOLED} a side",
            "stiffness_examples": self.stiffness_examples,
            "base": None if base is None else [weights_digest(base.model.flow().network), base.num_steps],
            "versions": versions(),
        }

    def caption(self) -> str:
        """What the numbers of a table are, in a few sentences."""
        identity = self.model.identity
        return (
            f"{identity.source}, protocol {self.protocol_hash}. FD: Frechet distance of {self.num_samples} images to "
            "all held-out ones, decoded, in the whitened latents of the autoencoder and in pixels pooled to at most "
            f"{POOLED} a side; mean over {len(self.seeds)} seeds with Student's interval over them; x real: over that "
            "of as many train images; off the flow: rms distance from the base flow's image of the same noise, 1.4 for "
            "an unrelated one; stiffness: its peak over the sampler's states."
        )

    def rows(self, done: Collection[ImageRow] = ()) -> Iterator[ImageRow]:
        """The yardstick, then one row per setting that is not ``done``."""
        have = {(row.model, row.setting) for row in done}
        if (self.autoencoder, ImageSetting(YARDSTICK)) not in have:
            yield self._yardstick()
        left = [setting for setting in self.settings if (self.digest, setting) not in have]
        if left:  # the first evaluation pays for warming up; it is not to be charged to a row
            self._make(left[0], self.seeds[0], 2)
        for setting in left:
            yield self._row(setting)

    def _yardstick(self) -> ImageRow:
        """Train images drawn without replacement, decoded like the held-out ones."""
        images = images_of(self.model).train()
        pairs = []
        for seed in self.seeds:
            (generator,) = example_generators(seed, 0, 1)
            picked = images[torch.randperm(len(images), generator=generator)[: self.num_samples]]
            pairs.append(self.distances(self.decoded(picked)))
        return self._measured(ImageSetting(YARDSTICK), "", self.autoencoder, pairs)

    def _row(self, setting: ImageSetting) -> ImageRow:
        pairs, seconds, nfe, off_flow = [], 0.0, 0, None
        for index, seed in enumerate(self.seeds):
            made = self._make(setting, seed, self.num_samples)
            pairs.append(self.distances(made.images))
            seconds, nfe = seconds + made.seconds, made.nfe
            if index == 0 and self.base is not None:
                off_flow = relative_rms(made.images[: self.base.num_samples], self.of_base(self.base))
        peak = self._stiffness_peak(setting) if self.stiffness_examples else None
        objective = self.model.identity.objective
        return self._measured(setting, objective, self.digest, pairs, off_flow, peak, nfe, seconds)

    def _measured(
        self,
        setting: ImageSetting,
        objective: str,
        model: str,
        pairs: Sequence[tuple[float, float]],
        off_flow: float | None = None,
        stiffness_peak: float | None = None,
        nfe: int | None = None,
        seconds: float | None = None,
    ) -> ImageRow:
        latents, pixels = zip(*pairs, strict=True)
        return ImageRow(
            setting=setting,
            objective=objective,
            model=model,
            num_samples=self.num_samples,
            seeds=self.seeds,
            latents=sum(latents) / len(latents),
            latents_interval=mean_interval(latents),
            latents_by_seed=latents,
            pixels=sum(pixels) / len(pixels),
            pixels_interval=mean_interval(pixels),
            pixels_by_seed=pixels,
            off_flow=off_flow,
            stiffness_peak=stiffness_peak,
            nfe=nfe,
            seconds=seconds,
            protocol_hash=self.protocol_hash,
            protocol=self.protocol,
        )

    def _make(self, setting: ImageSetting, seed: int, count: int) -> GeneratedImages:
        assert setting.num_steps is not None and setting.reinjection is not None
        return ImageGenerator(self.model).generate(
            count, setting.num_steps, seed, reinjection=setting.reinjection, batch_size=self.batch_size
        )

    def distances(self, images: Tensor) -> tuple[float, float]:
        """Of ``images`` (N, C, H, W) to the held-out ones, in latents and in pixels."""
        if self._reference is None:
            self._reference = self._moments(self.decoded(images_of(self.model).held_out()))
        return tuple(map(frechet_distance, self._moments(images), self._reference))  # type: ignore[return-value]

    @torch.no_grad()
    def _moments(self, images: Tensor) -> tuple[Moments, Moments]:
        latents = torch.cat([image_autoencoder(self.model).encode(part).cpu() for part in self._batches(images)])
        pooled = F.adaptive_avg_pool2d(images, (min(POOLED, images.shape[2]), min(POOLED, images.shape[3])))
        return moments(latents), moments(pooled)

    @torch.no_grad()
    def decoded(self, images: Tensor) -> Tensor:
        """Images after a way through the autoencoder, so that what it loses is not held against a flow."""
        model = image_autoencoder(self.model)
        return torch.cat([model.decode(model.encode(part)).clamp(0, 1).cpu() for part in self._batches(images)])

    def _batches(self, images: Tensor) -> list[Tensor]:
        device = next(image_autoencoder(self.model).parameters()).device
        return [part.to(device) for part in images.split(self.batch_size)]

    def of_base(self, base: BaseFlow) -> Tensor:
        if self._base_images is None:
            count = min(base.num_samples, self.num_samples)
            self._base_images = ImageGenerator(base.model).generate(count, base.num_steps, self.seeds[0]).images
        return self._base_images

    @torch.no_grad()
    def _stiffness_peak(self, setting: ImageSetting) -> float | None:
        """Over the states at which the sampler evaluated the model, for the first images of the first seed."""
        assert setting.num_steps is not None and setting.reinjection is not None
        flow = self.model.flow()
        generators = example_generators(self.seeds[0], 0, self.stiffness_examples)
        x_0 = randn((len(generators), *self.model.latent_shape()), next(flow.parameters()), generators)
        sampler = FlowSampler(flow.path, grid=self.model.identity.default_grid(), reinjection=setting.reinjection)
        mask = torch.ones(x_0.shape[:2], dtype=torch.bool, device=x_0.device)
        states = list(
            sampler.iterate(flow, x_0, num_steps=setting.num_steps, mask=mask, generator=generators),
        )[:-1]
        picked = torch.linspace(0, len(states) - 1, min(len(states), MAX_STATES)).round().int().tolist()
        found = stiffness(
            velocity_of(flow),
            [(states[index].time, states[index].x_t) for index in picked],
            num_iterations=NUM_ITERATIONS,
            generator=noise_source(self.seeds[0], "stiffness"),
        )
        return found["stiffness_peak"].value


def relative_rms(images: Tensor, expected: Tensor) -> float:
    """Rms of ``images`` - ``expected`` (N, C, H, W) over the rms deviation of ``expected`` from its mean image.

    0 for equal images, and the root of 2 for unrelated ones of the same kind. Raises ``ValueError`` for different
    shapes.
    """
    if images.shape != expected.shape:
        raise ValueError(f"images of shape {tuple(images.shape)} against {tuple(expected.shape)}: expected the same")
    scale = (expected - expected.mean(0)).square().mean()
    return float(((images - expected).square().mean() / scale).sqrt())


def _hash(values: Any) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:HASH_DIGITS]
