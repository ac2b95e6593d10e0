"""The image control's sweep: what its distances mean, what a row says, and that a stopped sweep goes on."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from fewstep.denoisers import RegressionDenoiser
from fewstep.errors import UserError
from fewstep.lab.images import sweep as image_sweep
from fewstep.lab.images.generator import GeneratedImages, ImageGenerator, image_autoencoder, images_of
from fewstep.lab.images.row import (
    COLUMNS,
    YARDSTICK,
    ImageRow,
    ImageSetting,
)
from fewstep.lab.images.sweep import BaseFlow, ImageSweep, relative_rms
from fewstep.metrics.frechet import frechet_distance, moments
from fewstep.metrics.intervals import Interval, mean_interval
from fewstep.model import SavedModel
from fewstep.shapes import example_generators
from tests.lab.images.models import tiny_image_flow, tiny_image_model


class Copying(ImageGenerator):
    """A generator that gives train images as its own: the k-th seed's share of the yardstick."""

    def generate(self, num_samples: int, *_: object, **__: object) -> GeneratedImages:  # type: ignore[override]
        seed = _[1]
        (generator,) = example_generators(seed, 0, 1)
        images, autoencoder = images_of(self.model).train(), image_autoencoder(self.model)
        images = images[torch.randperm(len(images), generator=generator)[:num_samples]]
        with torch.no_grad():
            return GeneratedImages(autoencoder.decode(autoencoder.encode(images)).clamp(0, 1), torch.zeros(0), 1, 0.5)


def small(model: SavedModel, **options: object) -> ImageSweep:
    """A sweep of 20 images for two seeds at one and two steps."""
    given = {"steps": (1, 2), "reinjections": (0.0, 1.0), "num_samples": 20, "seeds": (0, 1), **options}
    return ImageSweep(model, **given)


def test_a_model_that_gives_train_images_is_as_far_as_the_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_image_flow()
    with monkeypatch.context() as patched:
        patched.setattr(image_sweep, "ImageGenerator", Copying)
        real, copied, *_ = small(model).rows()
    assert real.setting == ImageSetting(YARDSTICK)
    for space in ("latents", "pixels"):
        assert copied.value(space)[0] == pytest.approx(real.value(space)[0])
    _, made, *_ = small(model).rows()
    assert made.latents > real.latents
    assert made.pixels > real.pixels


def test_the_distance_is_that_of_decoded_images_to_all_decoded_held_out_ones() -> None:
    model = tiny_image_flow()
    _, row = small(model, steps=(2,), reinjections=(0.5,), name="mine").rows()
    assert row.setting == ImageSetting("mine", 2, 0.5)
    with torch.no_grad():
        autoencoder = image_autoencoder(model)
        held_out = autoencoder.decode(autoencoder.encode(images_of(model).held_out())).clamp(0, 1)
        for seed, latents, pixels in zip((0, 1), row.latents_by_seed, row.pixels_by_seed, strict=True):
            images = ImageGenerator(model).generate(20, 2, seed, reinjection=0.5).images
            expected = frechet_distance(moments(autoencoder.encode(images)), moments(autoencoder.encode(held_out)))
            assert latents == pytest.approx(expected, rel=1e-5)
            assert pixels == pytest.approx(frechet_distance(moments(images), moments(held_out)), rel=1e-5)
    assert row.latents == pytest.approx(sum(row.latents_by_seed) / 2)
    assert row.nfe == 2
    assert row.seconds > 0
    assert (row.objective, row.num_samples, row.seeds) == ("FlowMatching", 20, (0, 1))


@pytest.mark.parametrize("values", [(1.0, 2.0), (3.0, 1.0, 2.5, 7.0)])
def test_the_interval_over_seeds_is_students(values: tuple[float, ...]) -> None:
    found, spread = mean_interval(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), spread)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    assert mean_interval(values[:1]) is None


def test_the_base_flow_is_nothing_off_itself_and_unrelated_images_are_the_root_of_two_off() -> None:
    model = tiny_image_flow()
    base = BaseFlow(model, num_steps=6, num_samples=10)
    _, same, fewer = small(model, steps=(6, 1), reinjections=(0.0,), base=base).rows()
    assert same.off_flow == pytest.approx(0, abs=1e-4)  # batches of other sizes round otherwise, by about 1e-6
    assert fewer.off_flow > 0.01
    noise = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 400, 1, 8, 8, generator=noise)
    assert relative_rms(first, second) == pytest.approx(2**0.5, rel=0.02)
    with pytest.raises(ValueError, match="expected the same"):
        relative_rms(first, second[:3])
    others = tiny_image_flow()
    others.autoencoder = tiny_image_model(seed=5).autoencoder
    with pytest.raises(UserError, match="another autoencoder"):
        small(model, base=BaseFlow(others))


def test_stiffness_is_that_of_the_velocity_at_the_samplers_states() -> None:
    # A fresh denoiser answers 0, so that v = -x / (1 - t), whose peak is at the last of the times 0, 1/4, 1/2, 3/4.
    model = tiny_image_flow(grid_mean=None, grid_std=None)
    model.denoiser = RegressionDenoiser(2, 4, width=16, depth=1, num_heads=2)
    _, row = small(model, steps=(4,), reinjections=(0.0,), stiffness_examples=2).rows()
    assert row.stiffness_peak == pytest.approx(4, rel=1e-4)


def test_settings_that_the_model_was_not_trained_for_are_left_out() -> None:
    assert [one.num_steps for one in small(tiny_image_flow(trained_nfe=2)).settings] == [2, 2]
    endpoint = small(tiny_image_flow(estimate="endpoint")).settings
    assert [(one.num_steps, one.reinjection) for one in endpoint] == [(1, 0.0), (1, 1.0), (2, 1.0)]
    with pytest.raises(UserError, match="trained for none of"):
        small(tiny_image_flow(trained_nfe=3))
    with pytest.raises(UserError, match="has no denoiser"):
        small(tiny_image_model())
    with pytest.raises(UserError, match="from 2 to 1700, the train images"):
        small(tiny_image_flow(), num_samples=1701)


def test_rows_that_are_done_are_not_measured_again_and_models_on_one_autoencoder_share_the_yardstick() -> None:
    rows = list(small(tiny_image_flow()).rows())
    assert len(rows) == 5
    rest = list(small(tiny_image_flow()).rows(rows[:2]))
    assert [replace(row, seconds=None) for row in rest] == [replace(row, seconds=None) for row in rows[2:]]
    other = list(small(tiny_image_flow(seed=1)).rows(rows))
    assert [row.setting for row in other] == [row.setting for row in rows[1:]]
    assert {row.protocol_hash for row in [*rows, *other]} == {rows[0].protocol_hash}
    assert small(tiny_image_flow(), num_samples=21).protocol_hash != rows[0].protocol_hash


def row(name: str, num_steps: int | None, reinjection: float | None, latents: float) -> ImageRow:
    """A row with a distance that a seed interval of 10 % surrounds."""
    interval = Interval(0.9 * latents, 1.1 * latents)
    return ImageRow(
        setting=ImageSetting(name, num_steps, reinjection),
        objective="",
        model="",
        num_samples=20,
        seeds=(0, 1),
        latents=latents,
        latents_interval=interval,
        latents_by_seed=(latents, latents),
        pixels=latents / 10,
        pixels_interval=None,
        pixels_by_seed=(latents / 10,) * 2,
        off_flow=None,
        stiffness_peak=None,
        nfe=num_steps,
        seconds=None if num_steps is None else 4.0,
        protocol_hash="",
        protocol={},
    )


def test_the_table_has_a_cell_for_every_column() -> None:
    rows = [row(YARDSTICK, None, None, 2.0), row("flow", 4, 0.5, 6.0)]
    assert rows[1].cells(rows[0]) == (
        *("flow", "0.5", "4", "4", "6", "5.4 - 6.6", "3.00", "0.6", "", "3.00"),
        *("", "", "10.0", "20"),
    )
    assert len(rows[0].cells(None)) == len(COLUMNS)
