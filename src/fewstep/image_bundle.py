"""A saved image model: one folder, or a training checkpoint. B images, C channels, H x W pixels.

Its latents are (B, c, s, s), which a flow sees as K = s * s positions of c numbers, row by row.
"""

import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path as FilePath
from typing import Any, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from fewstep import storage
from fewstep.autoencoders import ImageAutoencoder
from fewstep.data import ImageSource, image_source
from fewstep.denoisers import EstimateKind, FlowModel, PredictionType, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.paths import PATHS
from fewstep.samplers import FlowSampler, RuleLike, Solver, check_compatible, check_numbers
from fewstep.schedules import TimeGrid, quantile_grid
from fewstep.shapes import example_generators, randn

FORMAT = 1
PART, FLOW_PART = "autoencoder", "denoiser"
"""The parts of an image model; also the names of their weight files. The second may be missing."""
PART_CLASSES: dict[str, type[nn.Module]] = {PART: ImageAutoencoder, FLOW_PART: RegressionDenoiser}


@dataclass(frozen=True)
class ImageFlowIdentity:
    """What the flow of an image model is: the same fields as in a text model's :class:`fewstep.bundle.Identity`."""

    time_convention: str = "t=0 noise, t=1 data"
    path: str = "linear"
    prediction: PredictionType = "x1"
    objective: str = ""
    trained_nfe: int | None = None
    estimate: EstimateKind = "posterior_mean"
    grid_mean: float | None = None
    grid_std: float | None = None

    def default_grid(self) -> TimeGrid:
        """Where training spent its time: logit-normal quantiles, or equal steps."""
        return quantile_grid(self.grid_mean, self.grid_std)


@dataclass(frozen=True)
class ImageIdentity:
    """What an image model is (this project's definition).

    ``data`` and ``data_config`` name the images that it was trained on and that were held out, see
    :func:`fewstep.data.image_source`; ``objective`` is the autoencoder's, ``noise_level_max`` the noise on the latents
    in its training (rms), and ``flow`` what its flow is, None where it has none.
    """

    data: str
    data_config: dict[str, Any]
    image_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    objective: str = ""
    noise_level_max: float = 0.0
    flow: ImageFlowIdentity | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GeneratedImages:
    """``images`` (N, C, H, W) in [0, 1] and the latents ``x_1`` (N, K, c) that were decoded, both on the CPU.

    ``nfe``: evaluations of the denoiser an image. ``seconds``: wall time from noise to images.
    """

    images: Tensor
    x_1: Tensor
    nfe: int
    seconds: float

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class ImageModel:
    """An image autoencoder with its identity, and a flow on its latents where one was trained.

    It is the continuous counterpart of a text model. Latents are (B, c, s, s) of unit variance, images (B, C, H, W) in
    [0, 1].
    """

    identity: ImageIdentity
    autoencoder: ImageAutoencoder
    denoiser: RegressionDenoiser | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """c channels of s x s numbers."""
        return self.autoencoder.latent_shape

    def parts(self) -> dict[str, nn.Module]:
        """The parts that are there, by name."""
        found: dict[str, nn.Module] = {PART: self.autoencoder}
        return found if self.denoiser is None else {**found, FLOW_PART: self.denoiser}

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, c, s, s) of ``images`` (B, C, H, W). Raises ``ValueError`` for images of another shape."""
        return self.autoencoder.encode(images)

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents ``z`` (B, c, s, s). It may be differentiated, in forward mode also."""
        return self.autoencoder.decode(z)

    def to_positions(self, z: Tensor) -> Tensor:
        """Latents (B, c, s, s) as a flow sees them, (B, K, c)."""
        return rearrange(z, "b c h w -> b (h w) c")

    def from_positions(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`to_positions`: (B, K, c) to latents (B, c, s, s)."""
        return rearrange(x, "b (h w) c -> b c h w", h=self.latent_shape[1])

    def require_flow(self, source: str = "this model") -> ImageFlowIdentity:
        """What the flow is. Raises ``UserError`` where the model has none."""
        if self.identity.flow is None or self.denoiser is None:
            raise UserError(f"{source} has no flow: train one on it, see configs/image_flow.yaml")
        return self.identity.flow

    def flow(self) -> FlowModel:
        """The denoiser as a flow model on its path. Raises ``UserError`` where there is none."""
        told = self.require_flow()
        assert self.denoiser is not None
        return FlowModel(self.denoiser, PATHS[told.path](), told.prediction)

    @torch.no_grad()
    def generate(
        self,
        num_samples: int,
        num_steps: int = 4,
        seed: int = 0,
        *,
        reinjection: RuleLike = 0.0,
        solver: str | Solver = "euler",
        grid: TimeGrid | None = None,
        batch_size: int = 64,
    ) -> GeneratedImages:
        """``num_samples`` images in ``num_steps`` steps of ``solver``.

        Image i depends on ``seed`` and i alone, not on ``num_samples`` or ``batch_size`` (but for the last bits of
        sums). ``grid`` None is the identity's own, ``reinjection`` as in :func:`fewstep.samplers.parse_rule`. Raises
        ``UserError`` for numbers out of range, a missing flow, and a sampler that the identity rules out.
        """
        check_numbers(num_samples, num_steps, batch_size)
        told, flow = self.require_flow(), self.flow()
        like, start = next(flow.parameters()), time.perf_counter()
        images, latents, nfe = [], [], 0
        try:
            grid = told.default_grid() if grid is None else grid
            sampler = FlowSampler(flow.path, grid=grid, reinjection=reinjection, solver=solver)
            check_compatible(told, sampler, num_steps)
        except ValueError as error:
            raise UserError(str(error)) from None
        for first in range(0, num_samples, batch_size):
            generators = example_generators(seed, first, min(batch_size, num_samples - first))
            x_0 = randn((len(generators), *self._positions_shape()), like, generators)
            mask = torch.ones(x_0.shape[:2], dtype=torch.bool, device=like.device)
            for state in sampler.iterate(flow, x_0, num_steps=num_steps, mask=mask, generator=generators):
                x_t, nfe = state.x_t, state.nfe
            images.append(self.decode(self.from_positions(x_t)).clamp(0, 1).cpu())
            latents.append(x_t.cpu())
        return GeneratedImages(torch.cat(images), torch.cat(latents), nfe, time.perf_counter() - start)

    def _positions_shape(self) -> tuple[int, int]:
        channels, height, width = self.latent_shape
        return height * width, channels

    def source(self) -> ImageSource:
        """The images that the model was trained on. Raises ``UserError`` for a source that this fewstep has not."""
        return image_source(self.identity.data, self.identity.data_config)

    def held_out(self, count: int | None = None) -> Tensor:
        """The first ``count`` held-out images, or all, (N, C, H, W) on the CPU. Raises ``UserError`` for too many."""
        return self.source().held_out(count)

    def to(self, device: torch.device | str) -> "ImageModel":
        """Move the model to a device, in evaluation mode; returns itself."""
        for part in self.parts().values():
            part.to(device).eval()
        return self

    def manifest(self) -> dict[str, Any]:
        """What ``config.json`` says: the identity, and class and constructor arguments of every part."""
        parts = {name: {"class": type(part).__name__, "config": part.config} for name, part in self.parts().items()}
        return {"format": FORMAT, "kind": "images", "identity": asdict(self.identity), "parts": parts}

    def save_pretrained(self, folder: str | FilePath, *, overwrite: bool = False) -> None:
        """Write ``config.json`` and one safetensors file a part, whole or not at all.

        Raises ``UserError`` where the folder holds something already (unless ``overwrite``) or cannot be written.
        """
        weights = {name: part.state_dict() for name, part in self.parts().items()}
        storage.write_folder(FilePath(folder), self.manifest(), weights, None, overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, path: str | FilePath) -> "ImageModel":
        """Load a folder written by :meth:`save_pretrained`, or a ``.ckpt`` file of an image stage, on the CPU.

        Strict: every tensor must be there and fit. Raises ``UserError`` with one line for whatever is wrong, a model
        of text among it.
        """
        path = FilePath(path).expanduser()
        stored = storage.read_model(path, "images")
        manifest = stored.manifest
        if manifest.get("format") != FORMAT:
            raise UserError(f"{path}: image model format {manifest.get('format')}, this fewstep reads {FORMAT}")
        identity = _identity(manifest["identity"], str(path))
        storage.warn_of_newer(identity.versions, str(path))
        parts = _build(manifest["parts"], str(path))
        for name, part in parts.items():
            storage.load_strictly(part, stored.weights[name], f"{path} ({name})")
        model = cls(identity, **parts).to("cpu")
        _check_agreement(model, str(path))
        return model


def _check_agreement(model: ImageModel, source: str) -> None:
    """Raise ``UserError`` unless identity and parts say the same."""
    identity, autoencoder, denoiser = model.identity, model.autoencoder, model.denoiser
    for what in ("image_shape", "latent_shape"):
        told, real = getattr(identity, what), getattr(autoencoder, what)
        if told != real:
            raise UserError(f"{source}: the identity says {what} {told}, the autoencoder has {real}")
    if (identity.flow is None) != (denoiser is None):
        has, other = ("a denoiser", "no flow") if identity.flow is None else ("no denoiser", "a flow")
        raise UserError(f"{source}: it has {has}, but its identity tells of {other}")
    if identity.flow is None or denoiser is None:
        return
    channels, height, width = autoencoder.latent_shape
    wanted, found = (channels, height * width), (denoiser.config["latent_dim"], denoiser.config["num_positions"])
    if wanted != found:
        raise UserError(f"{source}: latents have (dimension, positions) {wanted}, the denoiser is made for {found}")
    if identity.flow.estimate == "flow_map" and not model.flow().two_times:
        raise UserError(f"{source}: a flow map, but its denoiser has one time only")


def _identity(values: dict[str, Any], source: str) -> ImageIdentity:
    values = {"flow": None, **values}  # models saved before there were flows
    _check_keys(values, ImageIdentity, "identity", source)
    shapes = {name: values[name] for name in ("image_shape", "latent_shape")}
    for name, shape in shapes.items():
        if not isinstance(shape, list | tuple):
            raise UserError(f"{source}: {name} is {shape!r}, expected a list of three numbers")
    if not isinstance(values["data_config"], dict):
        raise UserError(f"{source}: data_config is {values['data_config']!r}, expected the settings of the images")
    plain = {name: tuple(shape) for name, shape in shapes.items()}
    identity = ImageIdentity(**{**values, **plain, "flow": _flow_identity(values["flow"], source)})
    storage.check_identity(identity, source)
    return identity


def _flow_identity(values: Any, source: str) -> ImageFlowIdentity | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise UserError(f"{source}: flow is {values!r}, expected what the flow is, or null")
    _check_keys(values, ImageFlowIdentity, "flow", source)
    expected = {
        "time_convention": (ImageFlowIdentity.time_convention,),
        "path": tuple(PATHS),
        "prediction": get_args(PredictionType),
        "estimate": get_args(EstimateKind),
    }
    for name, known in expected.items():
        if values[name] not in known:
            raise UserError(f"{source}: unknown {name} {values[name]!r}, expected {' or '.join(known)}")
    flow = ImageFlowIdentity(**values)
    storage.check_identity(flow, source)
    return flow


def _check_keys(values: dict[str, Any], cls: type, what: str, source: str) -> None:
    known = {item.name for item in fields(cls)}
    if set(values) != known:
        raise UserError(f"{source}: {what} whose keys {sorted(set(values) ^ known)} are too many or missing")


def _build(parts: dict[str, Any], source: str) -> dict[str, Any]:
    found = {name: part["class"] for name, part in parts.items()}
    expected = {name: cls.__name__ for name, cls in PART_CLASSES.items() if name == PART or name in found}
    if found != expected:
        raise UserError(f"{source}: its parts are {found}, expected {expected}")
    built = {}
    for name, part in parts.items():
        try:
            built[name] = PART_CLASSES[name](**part["config"])
        except (TypeError, ValueError, RuntimeError, UserError) as error:
            raise UserError(f"{source}: {found[name]} cannot be built from its config ({error})") from None
    return built
