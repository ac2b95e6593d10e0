"""Images over steps and re-injection, as a plan of the sweep engine: how far generated images are from real ones.

N images a seed, K steps. No network that was trained on photographs is asked: the features are the model's own latents,
and pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.diagnostics.stiffness import stiffness
from fewstep.errors import UserError
from fewstep.evaluation.adapters import all_real, velocity_of
from fewstep.evaluation.protocol import HASH_DIGITS
from fewstep.evaluation.rows import COLUMNS, Column, Setting, Value
from fewstep.evaluation.scorers import weights_digest
from fewstep.evaluation.subject import noise_source
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, model_digest
from fewstep.lab.images.generator import ImageGenerator, image_autoencoder, images_of
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.intervals import mean_interval
from fewstep.model import SavedModel
from fewstep.provenance import versions
from fewstep.samplers import FlowSampler, incompatibility
from fewstep.shapes import example_generators, randn

YARDSTICK = "train images"
"""Name of the row of real images."""
POOLED = 8
"""Pixels a side that the average pool leaves, at most."""
MAX_STATES = 8
"""States of a trajectory at which stiffness is measured, at most, evenly spread."""
NUM_ITERATIONS = 20
"""Of the power iteration for stiffness."""
IMAGE_COLUMNS: dict[str, Column] = {
    **{name: COLUMNS[name] for name in ("name", "reinjection", "num_steps", "nfe")},
    "latents": Column("FD latents", ".3g", interval=True),
    "pixels": Column("FD pixels", ".3g", interval=True),
    "off_flow": Column("off the flow", ".3f"),
    "stiffness_peak": Column("stiffness", ".1f"),
    "num_samples": COLUMNS["num_samples"],
}
"""Columns of a table of images."""


@dataclass(frozen=True)
class BaseFlow:
    """What images are compared with one by one: the flow of ``model``, followed in ``num_steps`` steps without fresh
    noise, for the first ``num_samples`` images of the first seed."""

    model: SavedModel
    num_steps: int = 64
    num_samples: int = 64


@dataclass(frozen=True)
class ImageStudy:
    """Makes and measures the images of ``model``: ``num_samples`` for each of ``seeds``.

    Values of a row: ``latents`` and ``pixels``, the Frechet distance to the decoded held-out images in the whitened
    latents of the model's autoencoder and in average-pooled pixels (mean over seeds, Student's interval over them);
    ``off_flow``, the rms difference of an image from what the ``base`` flow on the same autoencoder makes of the same
    noise, over the rms deviation of those from their mean image (0: the same, 1.4: unrelated); ``stiffness_peak``, the
    highest mean over ``stiffness_examples`` images of the largest singular value of dv/dx, over the states that the
    sampler passed; ``nfe``. Raises ``UserError`` for a model without a flow, a base on other latents, and too many
    samples for the yardstick.
    """

    model: SavedModel
    num_samples: int = 512
    seeds: tuple[int, ...] = (0, 1, 2)
    base: BaseFlow | None = None
    stiffness_examples: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        self.model.require("autoencoder", "denoiser")
        most = images_of(self.model).num_train
        if not 2 <= self.num_samples <= most or not self.seeds:
            raise UserError(
                f"{self.num_samples} samples for seeds {self.seeds}: expected at least 1 seed and a number from 2 to "
                f"{most}, the train images of the yardstick"
            )
        if self.base is not None and _digest_of(self.base.model) != _digest_of(self.model):
            raise UserError("the base flow is on another autoencoder: the same noise means other images there")

    def plan(self, steps: Sequence[int], reinjections: Sequence[float], name: str | None = None) -> Plan:
        """The yardstick, and every number of ``steps`` and strength of ``reinjections`` that the model was trained for.

        ``name`` is by default that of the objective. Raises ``UserError`` where nothing fits.
        """
        identity, path, grid = self.model.identity, self.model.flow().path, self.model.identity.default_grid()
        settings: list[Setting] = [
            {"name": name or identity.objective or "flow", "num_steps": count, "reinjection": f"{gamma:g}"}
            for gamma in map(float, reinjections)
            for count in steps
            if incompatibility(identity, FlowSampler(path, grid=grid, reinjection=gamma), count) is None
        ]
        if not settings:
            raise UserError(f"{identity.objective} was trained for none of steps {steps}, re-injection {reinjections}")
        yardstick = Group(({"name": YARDSTICK},), self._train_images, model=_digest_of(self.model))
        return Plan(
            groups=[yardstick, Group(tuple(settings), self._generated_by_model)],
            measures=[self._distances(), *([self._off_flow(self.base)] if self.base else []), self._stiffness()],
            protocol={
                "data": {identity.source: identity.source_config},
                "reference": "all held-out images, encoded and decoded",
                "autoencoder": _digest_of(self.model),
                "versions": versions(),
            },
            num_samples=self.num_samples,
            seeds=self.seeds,
            model=model_digest(self.model),
            batch_size=self.batch_size,
            caption=(
                f"{identity.source}. FD: Frechet distance of {self.num_samples} images to all held-out ones, decoded, "
                f"in the whitened latents of the autoencoder and in pixels pooled to at most {POOLED} a side; mean "
                f"over {len(self.seeds)} seeds with Student's interval over them; off the flow: rms distance from the "
                "base flow's image of the same noise, 1.4 for an unrelated one; stiffness: its peak over the sampler's "
                "states."
            ),
        )

    def _generated_by_model(self, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        return [generated(self.model, batch, setting, self.batch_size) for setting in settings]

    def _train_images(self, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        """Train images drawn without replacement, decoded like the held-out ones."""
        images = images_of(self.model).train()
        (generator,) = example_generators(batch.seed, 0, 1)
        picked = torch.randperm(len(images), generator=generator)[batch.first : batch.first + batch.count]
        return [Samples({"images": self._decoded(images[picked])})]

    def _distances(self) -> Measure:
        def take(setting: Setting, batch: Batch, samples: Samples) -> Mapping[str, Tensor]:
            return self._features(samples.tensors["images"])

        def values(setting: Setting, samples: Samples) -> Mapping[str, Value]:
            return {name: self._distance(name, samples) for name in ("latents", "pixels")}

        features = f"whitened latents; pixels pooled to at most {POOLED} a side"
        return Measure(values, take, {"features": features})

    def _distance(self, name: str, samples: Samples) -> Value:
        features, seed_index = samples.tensors[name], samples.tensors["seed_index"]
        by_seed = tuple(
            frechet_distance(moments(features[seed_index == index]), self._reference[name])
            for index in range(len(self.seeds))
        )
        return Value(sum(by_seed) / len(by_seed), mean_interval(by_seed), by_seed)

    @cached_property
    def _reference(self) -> dict[str, Moments]:
        features = self._features(self._decoded(images_of(self.model).held_out()))
        return {name: moments(value) for name, value in features.items()}

    @torch.no_grad()
    def _features(self, images: Tensor) -> dict[str, Tensor]:
        latents = torch.cat([image_autoencoder(self.model).encode(part).cpu() for part in self._batches(images)])
        pooled = F.adaptive_avg_pool2d(images, (min(POOLED, images.shape[2]), min(POOLED, images.shape[3])))
        return {"latents": latents, "pixels": pooled}

    @torch.no_grad()
    def _decoded(self, images: Tensor) -> Tensor:
        """Images after a way through the autoencoder, so that what it loses is not held against a flow."""
        model = image_autoencoder(self.model)
        return torch.cat([model.decode(model.encode(part)).clamp(0, 1).cpu() for part in self._batches(images)])

    def _batches(self, images: Tensor) -> list[Tensor]:
        device = next(image_autoencoder(self.model).parameters()).device
        return [part.to(device) for part in images.split(self.batch_size)]

    def _off_flow(self, base: BaseFlow) -> Measure:
        def take(setting: Setting, batch: Batch, samples: Samples) -> Mapping[str, Tensor]:
            count = min(batch.count, base.num_samples - batch.first)
            if batch.seed_index > 0 or count < 1 or setting["name"] == YARDSTICK:
                return {}
            same_noise = Batch(0, batch.seed, batch.first, count)
            deterministic: Setting = {"num_steps": base.num_steps, "reinjection": 0.0}
            expected = generated(base.model, same_noise, deterministic, self.batch_size)
            return {"images": samples.tensors["images"][:count], "of_base": expected.tensors["images"]}

        def values(setting: Setting, samples: Samples) -> Mapping[str, Value]:
            if "of_base" not in samples.tensors:
                return {}
            return {"off_flow": Value(relative_rms(samples.tensors["images"], samples.tensors["of_base"]))}

        digest = weights_digest(base.model.flow().network)
        return Measure(values, take, {"base": [digest, base.num_steps, base.num_samples]})

    def _stiffness(self) -> Measure:
        def values(setting: Setting, samples: Samples) -> Mapping[str, Value]:
            measured = self.stiffness_examples > 0 and setting["name"] != YARDSTICK
            return {"stiffness_peak": Value(self._stiffness_peak(setting))} if measured else {}

        return Measure(values, _take_nothing, {"stiffness_examples": self.stiffness_examples})

    @torch.no_grad()
    def _stiffness_peak(self, setting: Setting) -> float | None:
        """Over the states at which the sampler evaluated the model, for the first images of the first seed."""
        flow, num_steps = self.model.flow(), int(setting["num_steps"])
        generators = example_generators(self.seeds[0], 0, self.stiffness_examples)
        x_0 = randn((len(generators), *self.model.latent_shape()), next(flow.parameters()), generators)
        grid, gamma = self.model.identity.default_grid(), float(setting["reinjection"])
        sampler = FlowSampler(flow.path, grid=grid, reinjection=gamma)
        states = list(sampler.iterate(flow, x_0, num_steps=num_steps, mask=all_real(x_0), generator=generators))[:-1]
        picked = torch.linspace(0, len(states) - 1, min(len(states), MAX_STATES)).round().int().tolist()
        result = stiffness(
            velocity_of(flow),
            [(states[index].time, states[index].x_t) for index in picked],
            num_iterations=NUM_ITERATIONS,
            generator=noise_source(self.seeds[0], "stiffness"),
        )
        return result["stiffness_peak"].value


def generated(model: SavedModel, batch: Batch, setting: Setting, batch_size: int) -> Samples:
    """The images of a batch that ``model`` makes at ``setting``."""
    result = ImageGenerator(model).generate(
        batch.count,
        int(setting["num_steps"]),
        batch.seed,
        reinjection=setting["reinjection"],
        batch_size=batch_size,
        first_sample=batch.first,
    )
    return Samples({"images": result.images}, result.seconds, {"nfe": result.nfe})


def _take_nothing(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Any]:
    return {}


def _digest_of(model: SavedModel) -> str:
    """Of the autoencoder alone: models on one autoencoder share the yardstick."""
    return weights_digest(image_autoencoder(model))[:HASH_DIGITS]


def relative_rms(images: Tensor, expected: Tensor) -> float:
    """Rms of ``images`` - ``expected`` (N, C, H, W) over the rms deviation of ``expected`` from its mean image.

    0 for equal images, and the root of 2 for unrelated ones of the same kind. Raises ``ValueError`` for different
    shapes.
    """
    if images.shape != expected.shape:
        raise ValueError(f"images of shape {tuple(images.shape)} against {tuple(expected.shape)}: expected the same")
    scale = (expected - expected.mean(0)).square().mean()
    return float(((images - expected).square().mean() / scale).sqrt())
