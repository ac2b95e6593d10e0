"""Pictures of coloured discs and rectangles, drawn from numbers. N images, S pixels a side, K shapes."""

import torch
from einops import rearrange
from torch import Tensor

from fewstep.shapes import example_generators

NUM_SHAPES = 4
"""At most so many in a picture (K); each is there with a probability of 3/4."""
_BACKGROUND, _SHAPE = 8, 13
"""Uniform numbers that decide a background, and a shape."""


def draw_images(seed: int, start: int, count: int, size: int) -> Tensor:
    """Images ``start`` .. ``start + count - 1`` of the stream that ``seed`` names: (N, 3, S, S) float32 in [0, 1].

    Each is a gradient between two colours with up to four anti-aliased discs and turned rectangles over it, which hold
    a gradient of their own. Image i depends on (seed, i) alone: its numbers come from a generator of its own, and they
    are drawn with operations that round correctly, whatever stands beside it. Values are whole multiples of 1/255. This
    project's definition. Raises ``ValueError`` for a negative ``start`` or ``count`` or a size below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}: an image needs at least 1 pixel a side")
    generators = example_generators(seed, start, count)
    numbers = _BACKGROUND + NUM_SHAPES * _SHAPE
    drawn = [torch.rand(numbers, generator=generator) for generator in generators]
    if not drawn:
        return torch.zeros(0, 3, size, size)
    u = torch.stack(drawn)
    canvas = _gradient(u[:, :3], u[:, 3:6], u[:, 6:8], size)
    for shape in u[:, _BACKGROUND:].split(_SHAPE, 1):
        cover = _coverage(shape, size)[:, None]
        canvas = canvas + cover * (_gradient(shape[:, 6:9], shape[:, 9:12], shape[:, 4:6], size) - canvas)
    return (canvas * 255).round() / 255


def _pixels(size: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels' middles, each (S, S), in [0, 1]."""
    middles = (torch.arange(size) + 0.5) / size
    return middles[None, :].expand(size, size), middles[:, None].expand(size, size)


def _direction(u: Tensor) -> tuple[Tensor, Tensor]:
    """A unit vector from two uniform numbers (N, 2), as two tensors (N, 1, 1)."""
    x, y = rearrange(2 * u - 1, "n c -> c n 1 1")
    length = (x * x + y * y).sqrt().clamp(min=1e-6)
    return x / length, y / length


def _gradient(first: Tensor, last: Tensor, direction: Tensor, size: int) -> Tensor:
    """From one colour (N, 3) to another across the picture, (N, 3, S, S)."""
    (x, y), (along_x, along_y) = _pixels(size), _direction(direction)
    share = (0.5 + (x - 0.5) * along_x + (y - 0.5) * along_y).clamp(0, 1)[:, None]
    return first[:, :, None, None] + share * (last - first)[:, :, None, None]


def _coverage(u: Tensor, size: int) -> Tensor:
    """How much of each pixel a shape covers, (N, S, S) in [0, 1], from its numbers (N, 13).

    It falls linearly over the one pixel that the edge runs through.
    """
    x, y = _pixels(size)
    centre_x, centre_y, half_width, half_height = rearrange(u[:, :4], "n c -> c n 1 1")
    half_width, half_height = 0.08 + 0.22 * half_width, 0.08 + 0.22 * half_height
    along_x, along_y = _direction(u[:, 4:6])
    dx, dy = x - centre_x, y - centre_y
    across, along = dx * along_x + dy * along_y, dy * along_x - dx * along_y
    disc = (dx * dx + dy * dy).sqrt() - half_width
    rectangle = torch.maximum(across.abs() - half_width, along.abs() - half_height)
    kind = u[:, 12, None, None]  # below 3/8 a disc, below 3/4 a rectangle, else nothing
    distance = torch.where(kind < 0.375, disc, rectangle)
    return (0.5 - distance * size).clamp(0, 1) * (kind < 0.75)
