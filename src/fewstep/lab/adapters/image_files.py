"""Images for another's decoder: the project's own sources, or a folder of files. N images, C channels."""

from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.lab.images import Digits, DrawnShapes

SUFFIXES = (".png", ".jpg", ".jpeg")
BUILT_IN = ("digits", "shapes")


def read_images(source: str, count: int, *, channels: int, size: int) -> Tensor:
    """``count`` held-out images of ``source`` as (N, channels, size, size) float32 in [-1, 1].

    ``source`` is "digits" or "shapes" (:mod:`fewstep.lab.images.sources`), or a folder of .png and .jpg files, taken
    in order of their names. They are resized (bilinear, antialiased); grey ones are repeated over the channels,
    coloured ones averaged for a single channel. Raises ``UserError`` where there are fewer images, or one cannot be
    read.
    """
    if source == "digits":
        images = Digits().held_out(count)
    elif source == "shapes":
        images = DrawnShapes(num_held_out=max(count, 1), size=size).held_out(count)
    else:
        return torch.cat([_fitted(_read(file), channels, size) for file in _files(source, count)]) * 2 - 1
    return _fitted(images, channels, size) * 2 - 1


def check_images(source: str, count: int) -> None:
    """Raise ``UserError`` where ``source`` is none of :func:`read_images`, or a folder with under ``count`` images."""
    if source not in BUILT_IN:
        _files(source, count)


def _files(source: str, count: int) -> list[Path]:
    """The first ``count`` image files of a folder."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"images {source}: expected {' or '.join(BUILT_IN)}, or a folder of .png or .jpg files")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(files) < min(count, 2):
        raise UserError(f"images {source}: the folder holds {len(files)} .png or .jpg files, expected at least 2")
    if len(files) < count:
        raise UserError(f"examples is {count}: expected a number from 2 to {len(files)}, the images in {source}")
    return files[:count]


def _read(file: Path) -> Tensor:
    """(1, C, H, W) in [0, 1], grey or coloured as the file is."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            plain = opened.convert("L" if opened.mode in ("1", "L", "I", "I;16") else "RGB")
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"{file} cannot be read as an image ({error})") from None
    values = torch.from_numpy(np.array(plain)).float() / 255
    return values[None, None] if values.ndim == 2 else values.permute(2, 0, 1)[None]


def _fitted(images: Tensor, channels: int, size: int) -> Tensor:
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[-2:] == (size, size):
        return images
    resized = torch.nn.functional.interpolate(
        images, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.clamp(0, 1)
