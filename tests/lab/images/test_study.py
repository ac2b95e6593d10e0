"""The image control's study: what its distances mean, what a row says, and what models on one autoencoder share."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from fewstep.denoisers import RegressionDenoiser
from fewstep.errors import UserError
from fewstep.evaluation.rows import Row, rows_text
from fewstep.evaluation.sweep import Sweep
from fewstep.lab.images import study
from fewstep.lab.images.generator import GeneratedImages, ImageGenerator, image_autoencoder, images_of
from fewstep.lab.images.study import IMAGE_COLUMNS, YARDSTICK, BaseFlow, ImageStudy, relative_rms
from fewstep.metrics.frechet import frechet_distance, moments
from fewstep.metrics.intervals import mean_interval
from fewstep.model import SavedModel
from fewstep.shapes import example_generators
from tests.lab.images.models import tiny_image_flow, tiny_image_model


class Copying(ImageGenerator):
    """A generator that gives train images as its own: the seed's share of the yardstick."""

    def generate(self, num_samples: int, num_steps: int = 4, seed: int = 0, **given: int) -> GeneratedImages:  # type: ignore[override]
        (generator,) = example_generators(seed, 0, 1)
        images, autoencoder = images_of(self.model).train(), image_autoencoder(self.model)
        first = given["first_sample"]
        images = images[torch.randperm(len(images), generator=generator)[first : first + num_samples]]
        with torch.no_grad():
            return GeneratedImages(autoencoder.decode(autoencoder.encode(images)).clamp(0, 1), torch.zeros(0), 1, 0.5)


def rows_of(
    model: SavedModel, steps: tuple[int, ...] = (1, 2), reinjections: tuple[float, ...] = (0.0, 1.0), **options: object
) -> list[Row]:
    """Of 20 images, in batches of 8, for two seeds."""
    given = {"num_samples": 20, "seeds": (0, 1), "batch_size": 8, **options}
    return list(Sweep(ImageStudy(model, **given).plan(steps, reinjections)).rows())  # type: ignore[arg-type]


def test_a_model_that_gives_train_images_is_as_far_as_the_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_image_flow()
    with monkeypatch.context() as patched:
        patched.setattr(study, "ImageGenerator", Copying)
        real, copied, *_ = rows_of(model)
    assert real.setting == {"name": YARDSTICK}
    _, generated, *_ = rows_of(model)
    for space in ("latents", "pixels"):
        assert copied.value(space) == pytest.approx(real.value(space), rel=1e-4)
        assert generated.value(space) > real.value(space)


def test_the_distance_is_that_of_decoded_images_to_all_decoded_held_out_ones() -> None:
    model = tiny_image_flow()
    _, row = rows_of(model, (2,), (0.5,))
    assert row.setting == {"name": "FlowMatching", "num_steps": 2, "reinjection": "0.5"}
    with torch.no_grad():
        autoencoder = image_autoencoder(model)
        held_out = autoencoder.decode(autoencoder.encode(images_of(model).held_out())).clamp(0, 1)
        for seed in (0, 1):
            images = ImageGenerator(model).generate(20, 2, seed, reinjection=0.5).images
            expected = frechet_distance(moments(autoencoder.encode(images)), moments(autoencoder.encode(held_out)))
            assert row.values["latents"].by_seed[seed] == pytest.approx(expected, rel=1e-4)
            expected = frechet_distance(moments(images), moments(held_out))
            assert row.values["pixels"].by_seed[seed] == pytest.approx(expected, rel=1e-4)
    assert row.value("latents") == pytest.approx(sum(row.values["latents"].by_seed) / 2)
    assert row.interval("latents") == mean_interval(row.values["latents"].by_seed)
    assert (row.value("nfe"), row.num_samples, row.seeds) == (2, 40, (0, 1))
    assert row.seconds > 0
    assert "FD latents" in rows_text([row], "", IMAGE_COLUMNS)


@pytest.mark.parametrize("values", [(1.0, 2.0), (3.0, 1.0, 2.5, 7.0)])
def test_the_interval_over_seeds_is_students(values: tuple[float, ...]) -> None:
    interval, spread = mean_interval(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), spread)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-3)
    assert mean_interval(values[:1]) is None


def test_the_base_flow_is_nothing_off_itself_and_unrelated_images_are_the_root_of_two_off() -> None:
    model = tiny_image_flow()
    real, same, fewer = rows_of(model, (6, 1), (0.0,), base=BaseFlow(model, num_steps=6, num_samples=10))
    assert real.value("off_flow") is None
    assert same.value("off_flow") == pytest.approx(0, abs=1e-4)  # batches of other sizes round otherwise, by 1e-6
    assert fewer.value("off_flow") > 0.01
    noise = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 400, 1, 8, 8, generator=noise)
    assert relative_rms(first, second) == pytest.approx(2**0.5, rel=0.02)
    with pytest.raises(ValueError, match="expected the same"):
        relative_rms(first, second[:3])
    others = tiny_image_flow()
    others.autoencoder = tiny_image_model(seed=5).autoencoder
    with pytest.raises(UserError, match="another autoencoder"):
        ImageStudy(model, 20, base=BaseFlow(others))


def test_stiffness_is_that_of_the_velocity_at_the_samplers_states() -> None:
    # A fresh denoiser answers 0, so that v = -x / (1 - t), whose peak is at the last of the times 0, 1/4, 1/2, 3/4.
    model = tiny_image_flow(grid_mean=None, grid_std=None)
    model.denoiser = RegressionDenoiser(2, 4, width=16, depth=1, num_heads=2)
    _, row = rows_of(model, (4,), (0.0,), stiffness_examples=2)
    assert row.value("stiffness_peak") == pytest.approx(4, rel=1e-4)


def test_settings_that_the_model_was_not_trained_for_are_left_out() -> None:
    def settings(**changes: object) -> list[tuple[object, object]]:
        plan = ImageStudy(tiny_image_flow(**changes), 20).plan((1, 2), (0.0, 1.0))
        return [(setting["num_steps"], setting["reinjection"]) for setting in plan.settings[1:]]

    assert settings(trained_nfe=2) == [(2, "0"), (2, "1")]
    assert settings(estimate="endpoint") == [(1, "0"), (1, "1"), (2, "1")]
    with pytest.raises(UserError, match="trained for none of"):
        settings(trained_nfe=3)
    with pytest.raises(UserError, match="has no denoiser"):
        ImageStudy(tiny_image_model())
    with pytest.raises(UserError, match="from 2 to 1700, the train images"):
        ImageStudy(tiny_image_flow(), 1701)


def test_models_on_one_autoencoder_share_protocol_and_yardstick_and_a_batch_size_changes_no_image() -> None:
    first, other = (ImageStudy(tiny_image_flow(seed=seed), 20).plan((1,), (0.0,)) for seed in (0, 1))
    assert (
        first.protocol_hash == other.protocol_hash != ImageStudy(tiny_image_flow(), 21).plan((1,), (0,)).protocol_hash
    )
    assert first.groups[0].model == other.groups[0].model
    assert first.model != other.model

    def distances(batch_size: int) -> Tensor:
        rows = rows_of(tiny_image_flow(), (1,), (0.0,), batch_size=batch_size)
        return torch.tensor([row.value(space) for row in rows for space in ("latents", "pixels")])

    torch.testing.assert_close(distances(8), distances(20), rtol=1e-4, atol=1e-6)
