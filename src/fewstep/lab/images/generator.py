"""A saved image model: noise to images, and what a diagnosis measures of it. N images, C channels, S pixels a side."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.subject import Subject, check_numbers, positions_in
from fewstep.lab.images.autoencoder import ImageAutoencoder
from fewstep.lab.images.sources import Digits, DrawnShapes, ImageSource
from fewstep.model import SavedModel
from fewstep.pipeline import as_user_error
from fewstep.registry import validated
from fewstep.samplers import FlowSampler, RuleLike
from fewstep.samplers import sampler as samplers
from fewstep.shapes import example_generators, own_defaults, randn
from fewstep.types import Trajectory


def image_autoencoder(model: SavedModel) -> ImageAutoencoder:
    """The autoencoder of an image model. Raises ``UserError`` for another one."""
    autoencoder = cast(object, model.encoder())
    if not isinstance(autoencoder, ImageAutoencoder):
        raise UserError(f"the autoencoder is a {type(autoencoder).__name__}, expected an ImageAutoencoder")
    return autoencoder


def images_of(model: SavedModel) -> ImageSource:
    """The images that the model was trained on. Raises ``UserError`` for an unknown source, or other fields of it."""
    name, sources = model.identity.source, {"Digits": Digits, "DrawnShapes": DrawnShapes}
    if name not in sources:
        raise UserError(f"unknown images {name!r}: expected {' or '.join(sources)}")
    return validated(sources[name], model.identity.source_config, f"images {name}")


@dataclass(frozen=True)
class GeneratedImages:
    """``images`` (N, C, S, S) in [0, 1] on the CPU; ``nfe``: evaluations of the denoiser per image; ``seconds``: wall
    time from noise to images."""

    images: Tensor
    nfe: int
    seconds: float


@own_defaults()
@torch.no_grad()
def generate_images(
    model: SavedModel,
    num_samples: int,
    num_steps: int = 4,
    seed: int = 0,
    *,
    reinjection: RuleLike = 0.0,
    batch_size: int = 64,
    first_sample: int = 0,
) -> GeneratedImages:
    """``num_samples`` images in Euler steps on the model's own grid; image i depends on ``seed`` and i alone.

    Raises ``UserError`` for numbers out of range, a missing flow, and a sampler that the model's identity rules out.
    """
    samplers.check_numbers(num_samples, num_steps, batch_size)
    autoencoder, images, start = image_autoencoder(model), [], time.perf_counter()
    with as_user_error():
        sampler = FlowSampler(model.flow().path, grid=model.identity.default_grid(), reinjection=reinjection)
        samplers.check_compatible(model.identity, sampler, num_steps)
    for batch in sampled_latents(model, sampler, num_steps, seed, first_sample, num_samples, batch_size):
        z = rearrange(batch.states[-1], "b (h w) c -> b c h w", h=autoencoder.latent_shape[1])
        images.append(autoencoder.decode(z).clamp(0, 1).cpu())
    return GeneratedImages(torch.cat(images), batch.nfe, time.perf_counter() - start)


def sampled_latents(
    model: SavedModel, sampler: FlowSampler, num_steps: int, seed: int, first: int, count: int, batch_size: int
) -> Iterator[Trajectory]:
    """The trajectory of each batch of examples, from their own noise."""
    flow = model.flow()
    for start in range(first, first + count, batch_size):
        generators = example_generators(seed, start, min(batch_size, first + count - start))
        x_0 = randn((len(generators), *model.latent_shape()), next(flow.parameters()), generators)
        yield sampler.sample(flow, x_0, num_steps=num_steps, generator=generators)


def image_subject(
    model: SavedModel, *, num_examples: int, seed: int, name: str = "the model", at_most: bool = False
) -> Subject:
    """An image model and the first ``num_examples`` held-out images, or with ``at_most`` as many as there are.

    Raises ``UserError`` for fewer than 2 and for more than there are.
    """
    images, autoencoder = images_of(model).held_out(), image_autoencoder(model)
    num_examples = min(num_examples, len(images)) if at_most else num_examples
    check_numbers(num_examples, len(images), "the held-out images")
    images = images[:num_examples].to(model.device)
    with torch.no_grad():
        z = autoencoder.encode(images)
    source = {"source": model.identity.source, **model.identity.source_config}
    return Subject(name, autoencoder.decode, z, images, positions_in(images, 0, seed), seed, model=model, source=source)
