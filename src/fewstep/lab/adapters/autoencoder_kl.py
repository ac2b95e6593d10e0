"""Image autoencoders of diffusers: the posterior mean, read by the decoder. N images, C channels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.errors import UserError, first_line
from fewstep.evaluation.pretrained import AUTOENCODER, DTYPES, check_memory, from_pretrained, model_folder, read_config
from fewstep.evaluation.subject import MIN_EXAMPLES
from fewstep.lab.adapters.decoder import Decoder
from fewstep.lab.images import Digits, DrawnShapes

DEFAULT_SIZE = 32
BATCH_SIZE = 8


def load_autoencoder_kl(options: DiagnoseOptions) -> Decoder:
    """An image autoencoder of diffusers as a decoder, with the latents of images.

    The class is the ``Autoencoder...`` of diffusers that config.json names, and no other. A latent is the mean of the
    encoder's posterior, or its latent where it has no posterior (AutoencoderDC), not scaled or shifted. Images are
    resized to ``image_size`` pixels, left out: the config's sample_size, or 32. ``subfolder`` is where a pipeline holds
    its autoencoder. Raises ``UserError`` where diffusers is not installed, and for whatever is wrong with the model or
    the images.
    """
    source = options.images or "shapes"
    read = image_reader(source, options.examples, at_most=options.protocol is not None)  # before the model is loaded
    folder = model_folder(options.model, subfolder=options.subfolder, allow_pickle=options.allow_pickle)
    dtype = DTYPES[options.dtype or "float32"]
    check_memory(folder, dtype)
    model = _load(folder, dtype, options).to(options.pick_device())
    size = options.image_size or getattr(model.config, "sample_size", None) or DEFAULT_SIZE
    size = int(size[0] if isinstance(size, list | tuple) else size)
    channels = int(getattr(model.config, "in_channels", 3))
    images = read(channels, size).to(model.device, dtype)
    try:
        with torch.no_grad():
            encoded = [model.encode(part) for part in images.split(BATCH_SIZE)]
            z = torch.cat([_latent(part) for part in encoded])
            shape = model.decode(z[:1]).sample.shape
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        failed = f"{folder} does not encode images of {channels} x {size} x {size} ({first_line(error, 160)})"
        raise UserError(f"{failed}: try another --image_size") from None
    if shape[1:] != images.shape[1:]:
        raise UserError(f"{folder} decodes images of shape {tuple(shape[1:])}, given {tuple(images.shape[1:])}")
    latent = "the mean of its posterior" if hasattr(encoded[0], "latent_dist") else "its latent, it has no posterior"
    note = f"autoencoder-kl: latent of {type(model).__name__}: {latent}, {tuple(z.shape[1:])}"
    return Decoder(
        f"{options.model}/{options.subfolder}" if options.subfolder else options.model,
        lambda x: model.decode(x).sample,
        z,
        images,
        notes=(f"{note}; images of {size} x {size} pixels",),
        source={"source": source, "shape": list(images.shape[1:])},
        packages=("diffusers",),
    )


def _load(folder: Path, dtype: torch.dtype, options: DiagnoseOptions) -> Any:
    name = str(read_config(folder).get("_class_name"))
    try:
        import diffusers
    except ImportError:
        raise UserError("autoencoder-kl needs diffusers: pip install 'fewstep[diffusers]'") from None
    cls: Any = getattr(diffusers, name, None)
    if not (name.startswith(AUTOENCODER) and isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
        raise UserError(f"{folder} is a {name!r}: expected an autoencoder of diffusers as _class_name in config.json")
    settings = {
        "torch_dtype": dtype,
        "use_safetensors": not options.allow_pickle or any(folder.glob("*.safetensors")),
        "low_cpu_mem_usage": False,
    }
    model, _ = from_pretrained(cls, folder, purpose=name, name=str(folder), options=settings)

    def plain(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])

    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):  # its forward mode takes contiguous inputs only, the tangent too
            module.register_forward_pre_hook(plain)
    return model


def _latent(encoded: Any) -> Tensor:
    """The posterior's mean, or the latent of an encoder without one, under either name that diffusers has for it."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latent if hasattr(encoded, "latent") else encoded.latents


def image_reader(source: str, count: int, *, at_most: bool = False) -> Callable[[int, int], Tensor]:
    """What reads held-out images of ``source`` as (``count``, channels, size, size) float32 in [-1, 1].

    ``source`` is "digits" or "shapes" (:mod:`fewstep.lab.images`), or a folder of .png and .jpg files, taken in order
    of their names. They are resized (bilinear, antialiased); grey ones are repeated over the channels, coloured ones
    averaged for a decoder of one channel. Raises ``UserError`` where there are fewer images, unless ``at_most``, or one
    cannot be read.
    """
    files = [] if source in ("digits", "shapes") else _image_files(source, count, at_most)

    def read(channels: int, size: int) -> Tensor:
        if source == "digits":
            images = [Digits().held_out(min(count, Digits().num_held_out) if at_most else count)]
        elif source == "shapes":
            images = [DrawnShapes(num_held_out=count, size=size).held_out()]
        else:
            images = [_read(file) for file in files]
        return torch.cat([_resized(image, channels, size) for image in images]) * 2 - 1

    return read


def _image_files(source: str, count: int, at_most: bool) -> list[Path]:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise UserError(f"images {source}: expected digits or shapes, or a folder of .png or .jpg files")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if len(files) < (MIN_EXAMPLES if at_most else count):
        holds = f"images {source}: the folder holds {len(files)} .png or .jpg files, and examples is {count}"
        raise UserError(f"{holds}: expected at least 2 files and as many as --examples")
    return files[:count]


def _read(file: Path) -> Tensor:
    """(1, C, H, W) in [0, 1], grey or coloured as the file is."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as opened:
            plain = opened.convert("L" if opened.mode in ("1", "L", "I", "I;16") else "RGB")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as an image ({first_line(error)}): give another file") from None
    return torch.from_numpy(np.atleast_3d(np.array(plain))).permute(2, 0, 1)[None].float() / 255


def _resized(images: Tensor, channels: int, size: int) -> Tensor:
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    resized = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return images if images.shape[-2:] == (size, size) else resized.clamp(0, 1)
