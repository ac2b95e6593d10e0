"""Images: the two parts share none, and a drawn one depends on its number alone."""

from typing import Any

import pytest
import torch

from fewstep.errors import UserError
from fewstep.lab.images import Digits, DrawnShapes
from fewstep.lab.images.generator import images_of
from fewstep.lab.images.sources import ImageSource, draw_images
from fewstep.model import Identity, SavedModel

SMALL = DrawnShapes(num_train=40, num_held_out=20, size=12)


def named(name: str, config: dict[str, Any]) -> ImageSource:
    """The source that a saved model names."""
    return images_of(SavedModel(None, Identity(kind="images", source=name, source_config=config)))


def rows(images: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(image.flatten().tolist()) for image in images}


@pytest.mark.parametrize(("source", "count"), [(Digits(), 1797), (SMALL, 60)], ids=["digits", "drawn"])
def test_train_and_held_out_share_no_image_and_lie_in_the_unit_range(source: ImageSource, count: int) -> None:
    train, held_out = source.train(), source.held_out()
    assert len(train) == source.num_train
    assert len(rows(train) | rows(held_out)) == count, "no image comes twice, in one part or in both"
    for images in (train, held_out):
        assert images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1
        assert images.std() > 0.1
    torch.testing.assert_close(source.held_out(7), held_out[:7], rtol=0, atol=0)


def test_a_drawn_image_depends_on_seed_and_number_alone() -> None:
    whole = draw_images(5, 0, 33, 15)  # odd sizes: vector units leave remainders
    for start, count in ((0, 1), (7, 1), (7, 5), (20, 13)):
        torch.testing.assert_close(draw_images(5, start, count, 15), whole[start : start + count], rtol=0, atol=0)
    assert not rows(whole) & rows(draw_images(6, 0, 33, 15))
    more = DrawnShapes(num_train=41, num_held_out=30, size=12)
    torch.testing.assert_close(more.train()[:40], SMALL.train(), rtol=0, atol=0)
    torch.testing.assert_close(more.held_out()[:20], SMALL.held_out(), rtol=0, atol=0)


def test_edges_are_anti_aliased_so_a_shape_keeps_its_area_at_any_size() -> None:
    fine, coarse = draw_images(0, 0, 16, 64), draw_images(0, 0, 16, 16)
    pooled = torch.nn.functional.avg_pool2d(fine, 4)
    assert (pooled - coarse).abs().mean() < 0.01
    hard = torch.nn.functional.interpolate(fine, size=16, mode="nearest")
    assert (hard - pooled).square().mean() > 3 * (coarse - pooled).square().mean()


@pytest.mark.parametrize("source", [Digits(num_held_out=5, seed=2), SMALL])
def test_a_source_is_found_again_by_name_and_settings_and_another_seed_holds_out_others(source: ImageSource) -> None:
    again, other = (named(type(source).__name__, {**source.config, "seed": seed}) for seed in (source.seed, 7))
    assert again == source
    assert torch.equal(again.held_out(), source.held_out())
    assert not torch.equal(other.held_out(), source.held_out())


def test_bad_numbers_and_names_are_told() -> None:
    for make, message in (
        (lambda: Digits(num_held_out=1797), "num_held_out is 1797"),
        (lambda: DrawnShapes(size=0), "size is 0"),
        (lambda: Digits().held_out(298), "298 held-out images"),
        (lambda: named("Faces", {}), "unknown images 'Faces': expected Digits or DrawnShapes"),
        (lambda: named("Digits", {"colour": 1}), "unexpected or missing keys"),
    ):
        with pytest.raises(UserError, match=message):
            make()
