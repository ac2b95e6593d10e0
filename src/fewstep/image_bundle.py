"""A saved image autoencoder: one folder, or a training checkpoint. B images, C channels, H x W pixels."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import storage
from fewstep.autoencoders import ImageAutoencoder
from fewstep.data import ImageSource, image_source
from fewstep.errors import UserError

FORMAT = 1
PART = "autoencoder"
"""The one part of an image model; also the name of its weight file."""


@dataclass(frozen=True)
class ImageIdentity:
    """What an image model is (this project's definition).

    ``data`` and ``data_config`` name the images that it was trained on and that were held out, see
    :func:`fewstep.data.image_source`; ``noise_level_max`` the noise on the latents in training (rms).
    """

    data: str
    data_config: dict[str, Any]
    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    objective: str = ""
    noise_level_max: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class ImageModel:
    """An image autoencoder with its identity: the continuous counterpart of a text model's autoencoder and readout.

    Latents are (B, c, s, s) of unit variance, images (B, C, H, W) in [0, 1].
    """

    identity: ImageIdentity
    autoencoder: ImageAutoencoder

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """c channels of s x s numbers."""
        return self.autoencoder.latent_shape

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, c, s, s) of ``images`` (B, C, H, W). Raises ``ValueError`` for images of another shape."""
        return self.autoencoder.encode(images)

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents ``z`` (B, c, s, s). It may be differentiated, in forward mode also."""
        return self.autoencoder.decode(z)

    def source(self) -> ImageSource:
        """The images that the model was trained on. Raises ``UserError`` for a source that this fewstep has not."""
        return image_source(self.identity.data, self.identity.data_config)

    def held_out(self, count: int | None = None) -> Tensor:
        """The first ``count`` held-out images, or all, (N, C, H, W) on the CPU. Raises ``UserError`` for too many."""
        return self.source().held_out(count)

    def to(self, device: torch.device | str) -> "ImageModel":
        """Move the model to a device, in evaluation mode; returns itself."""
        self.autoencoder.to(device).eval()
        return self

    def manifest(self) -> dict[str, Any]:
        """What ``config.json`` says: the identity, and class and constructor arguments of the autoencoder."""
        part = {"class": type(self.autoencoder).__name__, "config": self.autoencoder.config}
        return {"format": FORMAT, "kind": "images", "identity": asdict(self.identity), "parts": {PART: part}}

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``config.json`` and ``autoencoder.safetensors``, whole or not at all.

        Raises ``UserError`` where the folder holds something already (unless ``overwrite``) or cannot be written.
        """
        weights = {PART: self.autoencoder.state_dict()}
        storage.write_folder(Path(folder), self.manifest(), weights, None, overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ImageModel":
        """Load a folder written by :meth:`save_pretrained`, or a ``.ckpt`` file of the image stage, on the CPU.

        Strict: every tensor must be there and fit. Raises ``UserError`` with one line for whatever is wrong, a model
        of text among it.
        """
        path = Path(path).expanduser()
        stored = storage.read_model(path, "images")
        manifest = stored.manifest
        if manifest.get("format") != FORMAT:
            raise UserError(f"{path}: image model format {manifest.get('format')}, this fewstep reads {FORMAT}")
        identity = _identity(manifest["identity"], str(path))
        autoencoder = _build(manifest["parts"], str(path))
        storage.load_strictly(autoencoder, stored.weights[PART], f"{path} ({PART})")
        for what in ("image_shape", "latent_shape"):
            told, real = getattr(identity, what), getattr(autoencoder, what)
            if told != real:
                raise UserError(f"{path}: the identity says {what} {told}, the autoencoder has {real}")
        return cls(identity, autoencoder).to("cpu")


def _identity(values: dict[str, Any], source: str) -> ImageIdentity:
    known = {item.name for item in fields(ImageIdentity)}
    if set(values) != known:
        raise UserError(f"{source}: identity whose keys {sorted(set(values) ^ known)} are too many or missing")
    shapes = {name: values[name] for name in ("image_shape", "latent_shape")}
    for name, shape in shapes.items():
        if not isinstance(shape, list | tuple):
            raise UserError(f"{source}: {name} is {shape!r}, expected a list of three numbers")
    if not isinstance(values["data_config"], dict):
        raise UserError(f"{source}: data_config is {values['data_config']!r}, expected the settings of the images")
    return ImageIdentity(**{**values, **{name: tuple(shape) for name, shape in shapes.items()}})


def _build(parts: dict[str, Any], source: str) -> ImageAutoencoder:
    found = {name: part["class"] for name, part in parts.items()}
    if found != {PART: ImageAutoencoder.__name__}:
        raise UserError(f"{source}: its parts are {found}, expected {PART} of class {ImageAutoencoder.__name__}")
    try:
        return ImageAutoencoder(**parts[PART]["config"])
    except (TypeError, ValueError, RuntimeError, UserError) as error:
        raise UserError(f"{source}: {ImageAutoencoder.__name__} cannot be built from its config ({error})") from None
