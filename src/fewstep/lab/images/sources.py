"""Images to learn from: scikit-learn's digits, and shapes drawn here. N images, C channels, S pixels a side."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from fewstep.errors import UserError
from fewstep.shapes import example_generators

HELD_OUT_START = 2**31
"""Drawn images from this number on are held out; those before it are for training."""
NUM_SHAPES = 4
"""Most shapes in a drawn image; each is there with a probability of 3/4."""
_BACKGROUND, _SHAPE = 8, 13
"""Uniform numbers that decide a background, and a shape."""
_NUM_DIGITS = 1797


class ImageSource:
    """Images in two parts that share none. A source is a frozen dataclass: its fields decide the images."""

    num_held_out: int

    @property
    def num_train(self) -> int:
        """Number of images to train on."""
        raise NotImplementedError

    def images(self, is_train: bool, count: int) -> Tensor:
        """The first ``count`` images of a part, (count, C, S, S) float32 in [0, 1]."""
        raise NotImplementedError

    def train(self) -> Tensor:
        """All images to train on."""
        return self.images(is_train=True, count=self.num_train)

    def held_out(self, count: int | None = None) -> Tensor:
        """The first ``count`` held-out images, or all. Raises ``UserError`` for more than there are."""
        if count is not None and not 1 <= count <= self.num_held_out:
            raise UserError(f"{count} held-out images: expected a number from 1 to {self.num_held_out}")
        return self.images(is_train=False, count=count or self.num_held_out)

    @property
    def config(self) -> dict[str, Any]:
        """The fields, fit for JSON."""
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Digits(ImageSource):
    """Handwritten digits of 8x8 grey pixels: scikit-learn's 1,797, of which ``num_held_out`` are held out.

    ``seed`` decides which. Raises ``UserError`` for a number that leaves nothing to train on.
    """

    num_held_out: int = 297
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_held_out < _NUM_DIGITS:
            raise UserError(f"num_held_out is {self.num_held_out}: expected a number from 1 to {_NUM_DIGITS - 1}")

    @property
    def num_train(self) -> int:
        return _NUM_DIGITS - self.num_held_out

    def images(self, is_train: bool, count: int) -> Tensor:
        from sklearn.datasets import load_digits

        images = torch.from_numpy(load_digits().images).float()[:, None] / 16
        (generator,) = example_generators(self.seed, 0, 1)
        images = images[torch.randperm(len(images), generator=generator)]
        return images[self.num_held_out :] if is_train else images[:count]


@dataclass(frozen=True)
class DrawnShapes(ImageSource):
    """Coloured discs, rectangles and gradients of ``size`` x ``size`` pixels, see :func:`draw_images`.

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

    def images(self, is_train: bool, count: int) -> Tensor:
        return draw_images(self.seed, 0 if is_train else HELD_OUT_START, count, self.size)


def draw_images(seed: int, start: int, count: int, size: int) -> Tensor:
    """Images ``start`` .. ``start + count - 1`` of the stream that ``seed`` names: (N, 3, S, S) float32 in [0, 1].

    Each is a gradient between two colours under up to four anti-aliased discs and turned rectangles, which hold a
    gradient of their own, in whole multiples of 1/255. Image i depends on (seed, i) alone: it has its own generator,
    and is drawn with operations that round correctly, whatever stands beside it.
    """
    numbers = _BACKGROUND + NUM_SHAPES * _SHAPE
    u = torch.stack([torch.rand(numbers, generator=generator) for generator in example_generators(seed, start, count)])
    canvas = _gradient(u[:, :6], u[:, 6:8], size)
    for shape in u[:, _BACKGROUND:].split(_SHAPE, 1):
        cover = _coverage(shape, size)[:, None]
        canvas = canvas + cover * (_gradient(shape[:, 6:12], shape[:, 4:6], size) - canvas)
    return (canvas * 255).round() / 255


def _direction(u: Tensor) -> tuple[Tensor, Tensor]:
    """A unit vector from two uniform numbers (N, 2), as two tensors (N, 1, 1)."""
    x, y = rearrange(2 * u - 1, "n c -> c n 1 1")
    length = (x * x + y * y).sqrt().clamp(min=1e-6)
    return x / length, y / length


def _gradient(colours: Tensor, direction: Tensor, size: int) -> Tensor:
    """From one of two ``colours`` (N, 6) to the other across the image, (N, 3, S, S)."""
    x, (along_x, along_y) = (torch.arange(size) + 0.5) / size, _direction(direction)  # the pixels' centres
    share = (0.5 + (x - 0.5) * along_x + (x[:, None] - 0.5) * along_y).clamp(0, 1)[:, None]
    first, last = colours[:, :, None, None].chunk(2, 1)
    return first + share * (last - first)


def _coverage(u: Tensor, size: int) -> Tensor:
    """Share of each pixel that a shape covers, (N, S, S) in [0, 1], from its numbers (N, 13).

    It falls linearly over the pixel at the boundary.
    """
    x, (along_x, along_y) = (torch.arange(size) + 0.5) / size, _direction(u[:, 4:6])
    centre_x, centre_y, half_width, half_height = rearrange(u[:, :4], "n c -> c n 1 1")
    half_width, half_height = 0.08 + 0.22 * half_width, 0.08 + 0.22 * half_height
    dx, dy = x - centre_x, x[:, None] - centre_y
    across, along = dx * along_x + dy * along_y, dy * along_x - dx * along_y
    disc = (dx * dx + dy * dy).sqrt() - half_width
    rectangle = torch.maximum(across.abs() - half_width, along.abs() - half_height)
    kind = u[:, 12, None, None]  # below 3/8 a disc, below 3/4 a rectangle, else nothing
    distance = torch.where(kind < 0.375, disc, rectangle)
    return (0.5 - distance * size).clamp(0, 1) * (kind < 0.75)
