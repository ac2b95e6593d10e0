"""How far generated images are from real ones: the groups and measures of a comparison, as a plan of the sweep engine.

N images a seed, K steps. No network that was trained on photographs is asked: the features are the model's own latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.rows import HASH_DIGITS, Setting, Value
from fewstep.evaluation.scorers import weights_digest
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, model_digest
from fewstep.lab.images.autoencoder import ImageAutoencoder
from fewstep.lab.images.generator import generate_images, image_autoencoder, images_of
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.intervals import mean_interval
from fewstep.model import SavedModel
from fewstep.provenance import versions
from fewstep.shapes import example_generators

YARDSTICK = "train images"
"""Name of the row of real images."""


@dataclass(frozen=True)
class ImageStudy:
    """Measures images of flows on the autoencoder of ``model``: ``num_samples`` for each of ``seeds``.

    Values of a row: ``latents``, the Frechet distance to the decoded held-out images in the whitened latents of the
    autoencoder (mean over seeds, Student's interval over them); ``nfe``. Raises ``UserError`` for a model without a
    flow, and for too many samples for the yardstick.
    """

    model: SavedModel
    num_samples: int = 512
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 64

    def __post_init__(self) -> None:
        self.model.require("autoencoder", "denoiser")
        most = images_of(self.model).num_train
        if not 2 <= self.num_samples <= most:
            raise UserError(f"{self.num_samples} samples: expected from 2 to {most}, the train images of the yardstick")

    def plan(self, groups: Sequence[Group], device: str = "cpu", provenance: dict[str, Any] | None = None) -> Plan:
        """The yardstick, then ``groups``, whose samples hold ``images``."""
        identity, digest = self.model.identity, weights_digest(image_autoencoder(self.model))[:HASH_DIGITS]
        return Plan(
            groups=[Group(({"name": YARDSTICK},), self._train_images, model=digest), *groups],
            measures=[Measure(self._distance, self._latents, {"features": "whitened latents"})],
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
            caption=f"{identity.source}. FD: Frechet distance of {self.num_samples} images to all held-out ones, "
            f"decoded, in the whitened latents of the autoencoder; {len(self.seeds)} seeds with Student's interval.",
        )

    def _train_images(self, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        """Train images drawn without replacement, decoded like the held-out ones."""
        images = images_of(self.model).train()
        (generator,) = example_generators(batch.seed, 0, 1)
        picked = torch.randperm(len(images), generator=generator)[batch.first : batch.first + batch.count]
        return [Samples({"images": self._mapped(images[picked], decoded)})]

    def _latents(self, setting: Setting, batch: Batch, samples: Samples) -> Mapping[str, Tensor]:
        return {"latents": self._mapped(samples.tensors["images"], ImageAutoencoder.encode)}

    def _distance(self, setting: Setting, samples: Samples) -> Mapping[str, Value]:
        z, seed_index = samples.tensors["latents"], samples.tensors["seed_index"]
        by_seed = tuple(
            frechet_distance(moments(z[seed_index == index]), self._reference) for index in range(len(self.seeds))
        )
        return {"latents": Value(sum(by_seed) / len(by_seed), mean_interval(by_seed), by_seed)}

    @cached_property
    def _reference(self) -> Moments:
        held_out = self._mapped(images_of(self.model).held_out(), decoded)
        return moments(self._mapped(held_out, ImageAutoencoder.encode))

    @torch.no_grad()
    def _mapped(self, images: Tensor, function: Callable[[ImageAutoencoder, Tensor], Tensor]) -> Tensor:
        """What a function of the autoencoder makes of images, batch by batch on its device."""
        autoencoder, device = image_autoencoder(self.model), self.model.device
        return torch.cat([function(autoencoder, part.to(device)).cpu() for part in images.split(self.batch_size)])


def decoded(autoencoder: ImageAutoencoder, images: Tensor) -> Tensor:
    """Images after a way through the autoencoder, so that what it loses is not held against a flow."""
    return autoencoder.decode(autoencoder.encode(images)).clamp(0, 1)


def generated(model: SavedModel, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
    """The images of a batch that ``model`` makes at each setting."""
    samples = []
    for setting in settings:
        steps, rule = int(setting["num_steps"]), setting["reinjection"]
        numbers = {"batch_size": batch.count, "first_sample": batch.first}
        result = generate_images(model, batch.count, steps, batch.seed, reinjection=rule, **numbers)
        samples.append(Samples({"images": result.images}, result.seconds, {"nfe": result.nfe}))
    return samples
