"""Image autoencoders of diffusers: the posterior mean, read by the decoder. B images, C channels."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError, first_line
from fewstep.evaluation.pretrained import Loading, check_report, check_weights, model_folder, read_config
from fewstep.lab.adapters.decoders import ImageDecoder
from fewstep.lab.adapters.image_files import check_images, read_images

PREFIX = "Autoencoder"
DEFAULT_SIZE = 32
BATCH_SIZE = 8


def load_autoencoder_kl(
    path: str, images: str, loading: Loading, *, num_examples: int, image_size: int | None = None
) -> ImageDecoder:
    """An image autoencoder of diffusers (folder or hub name) as a decoder, with the latents of ``num_examples`` images.

    The class is the ``Autoencoder...`` of diffusers that config.json names, and no other. A latent is the mean of the
    encoder's posterior, or its latent where it has no posterior, not scaled or shifted. ``images`` as in
    :func:`~fewstep.lab.adapters.image_files.read_images`; ``image_size`` in pixels, None: the config's sample_size, or
    32. Raises ``UserError`` where diffusers is not installed, and for whatever is wrong with the model or the images.
    """
    check_images(images, num_examples)
    folder = model_folder(path, loading)
    model = _load(folder, loading)
    size = _size(model, image_size)
    channels = int(getattr(model.config, "in_channels", 3))
    given = read_images(images, num_examples, channels=channels, size=size)
    given = given.to(loading.device, loading.torch_dtype)
    try:
        with torch.no_grad():
            z = torch.cat([_mean(model.encode(part)) for part in given.split(BATCH_SIZE)])
            shape = model.decode(z[:1]).sample.shape
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} does not encode images of {channels} x {size} x {size} ({first_line(error, 160)}): try another "
            "--image_size"
        ) from None
    if shape[1:] != given.shape[1:]:
        raise UserError(f"{path} decodes images of shape {tuple(shape[1:])}, given {tuple(given.shape[1:])}")
    pixels = f"images of {size} x {size} pixels"
    note = f"autoencoder-kl: latent: the mean of {type(model).__name__}'s posterior, {tuple(z.shape[1:])}; {pixels}"
    return ImageDecoder(path, lambda x: model.decode(x).sample, z, given, (note,))


def _load(folder: Path, loading: Loading) -> Any:
    if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(f"{folder} is a whole pipeline: give the folder of its autoencoder, {folder / 'vae'}")
    name = read_config(folder).get("_class_name")
    stranger = UserError(f"{folder} is a {name!r}: expected an autoencoder of diffusers as _class_name in config.json")
    if not isinstance(name, str) or not name.startswith(PREFIX):
        raise stranger
    try:
        import diffusers
    except ImportError:
        raise UserError("autoencoder-kl needs diffusers: pip install 'fewstep[diffusers]'") from None
    cls: Any = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
        raise stranger
    check_weights(folder, loading)
    try:
        model, report = cls.from_pretrained(
            str(folder),
            torch_dtype=loading.torch_dtype,
            use_safetensors=not loading.allow_pickle or any(folder.glob("*.safetensors")),
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # another's files in another library: whatever it raises is told
        raise UserError(f"{folder} cannot be loaded as {name} ({first_line(error, 160)})") from None
    check_report(report, str(folder), str(name))
    _straighten(model)
    return model.to(loading.device).eval().requires_grad_(False)


def _straighten(model: Any) -> None:
    """Give every group normalisation its input in plain order, tangent and all: its forward mode takes no other."""

    def plain(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].clone(memory_format=torch.contiguous_format), *inputs[1:])

    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_pre_hook(plain)


def _size(model: Any, wanted: int | None) -> int:
    found = getattr(model.config, "sample_size", None) if wanted is None else wanted
    if isinstance(found, list | tuple):
        found = found[0]
    return int(found) if isinstance(found, int) and found > 0 else DEFAULT_SIZE


def _mean(encoded: Any) -> Tensor:
    for name in ("latent_dist", "latent", "latents"):
        found = getattr(encoded, name, None)
        if found is not None:
            return found.mode() if name == "latent_dist" else found
    raise UserError(f"{type(encoded).__name__} has no posterior and no latent: the autoencoder cannot be diagnosed")
