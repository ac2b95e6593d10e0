"""The image control's study: what its distances mean, and what models on one autoencoder share."""

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.rows import Row
from fewstep.evaluation.sweep import Group, Samples, Sweep
from fewstep.lab.images.generator import generate_images, image_autoencoder, images_of
from fewstep.lab.images.study import YARDSTICK, ImageStudy, decoded, generated
from fewstep.metrics.frechet import frechet_distance, moments
from fewstep.metrics.intervals import mean_interval
from fewstep.model import SavedModel
from fewstep.shapes import example_generators
from tests.lab.images.models import tiny_image_flow, tiny_image_model


def rows_of(model: SavedModel, *settings: tuple[int, str], batch_size: int = 8, copying: bool = False) -> list[Row]:
    """Of 20 images for two seeds; ``copying``: the seed's share of the yardstick in place of generated images."""

    def make(batch, given):  # type: ignore[no-untyped-def]
        return [copies(model, batch)] if copying else generated(model, batch, given)

    groups = [Group(({"name": "flow", "num_steps": n, "reinjection": g},), make) for n, g in settings]
    return list(Sweep(ImageStudy(model, 20, (0, 1), batch_size).plan(groups)).rows())


def copies(model: SavedModel, batch) -> Samples:  # type: ignore[no-untyped-def]
    (generator,) = example_generators(batch.seed, 0, 1)
    images = images_of(model).train()
    images = images[torch.randperm(len(images), generator=generator)[batch.first : batch.first + batch.count]]
    with torch.no_grad():
        return Samples({"images": decoded(image_autoencoder(model), images)})


def test_a_model_that_gives_train_images_is_as_far_as_the_yardstick() -> None:
    real, copied = rows_of(tiny_image_flow(), (1, "0"), copying=True)
    _, own = rows_of(tiny_image_flow(), (1, "0"))
    assert real.setting == {"name": YARDSTICK}
    assert copied.value("latents") == pytest.approx(real.value("latents"), rel=1e-4)
    assert own.value("latents") > real.value("latents")


def test_the_distance_is_that_of_decoded_images_to_all_decoded_held_out_ones() -> None:
    model = tiny_image_flow()
    _, row = rows_of(model, (2, "0.5"))
    with torch.no_grad():
        autoencoder = image_autoencoder(model)
        held_out = autoencoder.decode(autoencoder.encode(images_of(model).held_out())).clamp(0, 1)
        for seed in (0, 1):
            images = generate_images(model, 20, 2, seed, reinjection=0.5).images
            expected = frechet_distance(moments(autoencoder.encode(images)), moments(autoencoder.encode(held_out)))
            assert row.values["latents"].by_seed[seed] == pytest.approx(expected, rel=1e-4)
    assert row.value("latents") == pytest.approx(sum(row.values["latents"].by_seed) / 2)
    assert row.interval("latents") == mean_interval(row.values["latents"].by_seed)
    assert (row.value("nfe"), row.num_samples, row.seeds) == (2, 40, (0, 1))
    assert row.seconds > 0


def test_a_study_without_a_flow_or_with_too_many_samples_is_refused() -> None:
    with pytest.raises(UserError, match="has no denoiser"):
        ImageStudy(tiny_image_model())
    with pytest.raises(UserError, match="from 2 to 1700, the train images"):
        ImageStudy(tiny_image_flow(), 1701)


def test_models_on_one_autoencoder_share_the_yardstick_and_a_batch_size_changes_no_image() -> None:
    first, other = (ImageStudy(tiny_image_flow(seed=seed), 20).plan([]) for seed in (0, 1))
    assert first.groups[0].model == other.groups[0].model
    assert first.model != other.model

    def distances(batch_size: int) -> Tensor:
        rows = rows_of(tiny_image_flow(), (1, "0"), batch_size=batch_size)
        return torch.tensor([row.value("latents") for row in rows])

    torch.testing.assert_close(distances(8), distances(20), rtol=1e-4, atol=1e-6)
