"""Images to learn from: scikit-learn's digits, and shapes that the project draws itself. N images, C channels."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.data.drawing import draw_images
from fewstep.errors import UserError
from fewstep.shapes import example_generators

HELD_OUT_START = 2**31
"""Drawn images from this number on are held out; those before it are for training."""


class ImageSource(ABC):
    """A set of images in two parts that share none. A source is a frozen dataclass: its fields decide the images."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """C channels, height and width in pixels."""

    @property
    @abstractmethod
    def num_train(self) -> int:
        """Number of images to train on."""

    @abstractmethod
    def train(self) -> Tensor:
        """Images to train on, (N, C, H, W) float32 in [0, 1]."""

    @abstractmethod
    def held_out(self, count: int | None = None) -> Tensor:
        """The first ``count`` held-out images, or all, (N, C, H, W) float32 in [0, 1].

        Raises ``UserError`` for more than there are.
        """

    @property
    def name(self) -> str:
        """What the source is called in a saved model."""
        return type(self).__name__

    @property
    def config(self) -> dict[str, Any]:
        """The fields, fit for JSON."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Digits(ImageSource):
    """Handwritten digits of 8x8 grey pixels: scikit-learn's 1,797, of which ``num_held_out`` are held out.

    ``seed`` decides which. No image comes twice. Raises ``UserError`` for numbers that leave nothing to train on.
    """

    num_held_out: int = 297
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_held_out < _NUM_DIGITS:
            raise UserError(f"num_held_out is {self.num_held_out}: expected a number from 1 to {_NUM_DIGITS - 1}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(1, 8, 8)."""
        return 1, 8, 8

    @property
    def num_train(self) -> int:
        """All that are not held out."""
        return _NUM_DIGITS - self.num_held_out

    def train(self) -> Tensor:
        """Images (num_train, 1, 8, 8)."""
        return self._shuffled()[self.num_held_out :]

    def held_out(self, count: int | None = None) -> Tensor:
        """Images (count or num_held_out, 1, 8, 8)."""
        return self._shuffled()[: _checked_count(count, self.num_held_out)]

    def _shuffled(self) -> Tensor:
        from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits().images).float()[:, None] / 16
        (generator,) = example_generators(self.seed, 0, 1)
        return images[torch.randperm(len(images), generator=generator)]


@dataclass(frozen=True)
class DrawnShapes(ImageSource):
    """Coloured discs, rectangles and gradients of ``size`` x ``size`` pixels, see :func:`.drawing.draw_images`.

    Image i of a part depends on (``seed``, i) alone. Raises ``UserError`` for numbers below 1.
    """

    num_train: int = 4096
    num_held_out: int = 512
    size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_train", "num_held_out", "size"):
            if not 1 <= getattr(self, name) <= HELD_OUT_START:
                raise UserError(f"{name} is {getattr(self, name)}: expected a number from 1 to {HELD_OUT_START}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, size, size)."""
        return 3, self.size, self.size

    def train(self) -> Tensor:
        """Images (num_train, 3, size, size)."""
        return draw_images(self.seed, 0, self.num_train, self.size)

    def held_out(self, count: int | None = None) -> Tensor:
        """Images (count or num_held_out, 3, size, size)."""
        return draw_images(self.seed, HELD_OUT_START, _checked_count(count, self.num_held_out), self.size)


_NUM_DIGITS = 1797
SOURCES: dict[str, type[Digits] | type[DrawnShapes]] = {cls.__name__: cls for cls in (Digits, DrawnShapes)}
"""What a saved model may name as its data."""


def image_source(name: str, config: dict[str, Any]) -> ImageSource:
    """The source that a saved model names. Raises ``UserError`` where there is none of this name and these fields."""
    if name not in SOURCES:
        raise UserError(f"unknown images {name!r}: expected {' or '.join(SOURCES)}")
    try:
        return SOURCES[name](**config)
    except TypeError as error:
        raise UserError(f"images {name} cannot be made from {config} ({error})") from None


def _checked_count(count: int | None, available: int) -> int:
    if count is not None and not 1 <= count <= available:
        raise UserError(f"{count} held-out images: expected a number from 1 to {available}")
    return available if count is None else count
