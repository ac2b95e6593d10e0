"""How far generated images are from real ones: the groups and measures of a comparison, as a plan of the sweep engine.

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

from fewstep.errors import UserError
from fewstep.evaluation.rows import HASH_DIGITS, Setting, Value
from fewstep.evaluation.scorers import weights_digest
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, model_digest
from fewstep.lab.images.generator import generate_images, image_autoencoder, images_of
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.intervals import mean_interval
from fewstep.model import SavedModel
from fewstep.provenance import versions
from fewstep.shapes import example_generators

YARDSTICK = "train images"
"""Name of the row of real images."""
POOLED = 8
"""Pixels a side that the average pool leaves, at most."""
FLOW_STEPS, FLOW_SAMPLES = 64, 64
"""Deterministic steps of the flow that images are compared with one by one, and how many images."""


@dataclass(frozen=True)
class ImageStudy:
    """Measures images of flows on the autoencoder of ``model``: ``num_samples`` for each of ``seeds``.

    Values of a row: ``latents`` and ``pixels``, the Frechet distance to the decoded held-out images in the whitened
    latents of the autoencoder and in average-pooled pixels (mean over seeds, Student's interval over them);
    ``off_flow``, the rms difference of an image from what the flow of ``model`` makes of the same noise in
    :data:`FLOW_STEPS` deterministic steps, over the rms deviation of those from their mean image (0: the same, 1.4:
    unrelated), for the first images of the first seed; ``nfe``. Raises ``UserError`` for a model without a flow, and
    for too many samples for the yardstick.
    """

    model: SavedModel
    num_samples: int = 512
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 64

    def __post_init__(self) -> None:
        self.model.require("autoencoder", "denoiser")
        most = images_of(self.model).num_train
        if not 2 <= self.num_samples <= most or not self.seeds:
            raise UserError(
                f"{self.num_samples} samples for seeds {self.seeds}: expected at least 1 seed and a number from 2 to "
                f"{most}, the train images of the yardstick"
            )

    def plan(self, groups: Sequence[Group], device: str = "cpu", provenance: dict[str, Any] | None = None) -> Plan:
        """The yardstick, then ``groups``, whose samples hold ``images``."""
        identity, digest = self.model.identity, weights_digest(image_autoencoder(self.model))[:HASH_DIGITS]
        return Plan(
            groups=[Group(({"name": YARDSTICK},), self._train_images, model=digest), *groups],
            measures=[self._distances(), self._off_flow()],
            protocol={
                "data": {identity.source: identity.source_config},
                "reference": "all held-out images, encoded and decoded",
                "autoencoder": digest,
                "versions": versions(),
            },
            num_samples=self.num_samples,
            seeds=self.seeds,
            model=model_digest(self.model),
            batch_size=self.batch_size,
            device=device,
            provenance=provenance,
            caption=(
                f"{identity.source}. FD: Frechet distance of {self.num_samples} images to all held-out ones, decoded, "
                f"in the whitened latents of the autoencoder and in pixels pooled to at most {POOLED} a side; mean "
                f"over {len(self.seeds)} seeds with Student's interval over them; off the flow: rms distance from the "
                "flow's image of the same noise, 1.4 for an unrelated one."
            ),
        )

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

        return Measure(values, take, {"features": f"whitened latents; pixels pooled to at most {POOLED} a side"})

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

    def _off_flow(self) -> Measure:
        def take(setting: Setting, batch: Batch, samples: Samples) -> Mapping[str, Tensor]:
            count = min(batch.count, FLOW_SAMPLES - batch.first)
            if batch.seed_index > 0 or count < 1 or setting["name"] == YARDSTICK:
                return {}
            same_noise = Batch(0, batch.seed, batch.first, count)
            deterministic: Setting = {"num_steps": FLOW_STEPS, "reinjection": 0.0}
            expected = generated(self.model, same_noise, deterministic, self.batch_size)
            return {"images": samples.tensors["images"][:count], "of_flow": expected.tensors["images"]}

        def values(setting: Setting, samples: Samples) -> Mapping[str, Value]:
            if "of_flow" not in samples.tensors:
                return {}
            return {"off_flow": Value(relative_rms(samples.tensors["images"], samples.tensors["of_flow"]))}

        digest = weights_digest(self.model.flow().network)
        return Measure(values, take, {"base": [digest, FLOW_STEPS, FLOW_SAMPLES]})


def generated(model: SavedModel, batch: Batch, setting: Setting, batch_size: int) -> Samples:
    """The images of a batch that ``model`` makes at ``setting``."""
    result = generate_images(
        model,
        batch.count,
        int(setting["num_steps"]),
        batch.seed,
        reinjection=setting["reinjection"],
        batch_size=batch_size,
        first_sample=batch.first,
    )
    return Samples({"images": result.images}, result.seconds, {"nfe": result.nfe})


def relative_rms(images: Tensor, expected: Tensor) -> float:
    """Rms of ``images`` - ``expected`` (N, C, S, S) over the rms deviation of ``expected`` from its mean image.

    0 for equal images, and the root of 2 for unrelated ones of the same kind.
    """
    scale = (expected - expected.mean(0)).square().mean()
    return float(((images - expected).square().mean() / scale).sqrt())
