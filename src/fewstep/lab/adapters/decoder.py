"""What a decoder of another package must give to be diagnosed, and one that a function of the user's makes.

B examples, L tokens, V vocabulary.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.diagnostics.cci import TokenConditionals
from fewstep.diagnostics.decoding import Decode, DecodeInParts, rms
from fewstep.errors import UserError
from fewstep.evaluation.subject import NUMBERS_AT_ONCE, Subject, check_numbers, positions_in


@dataclass(frozen=True)
class Decoder:
    """A readout of tokens, or a decoder of images, with the latents of some data.

    ``decode`` gives logits (B, L, V) or images (B, C, H, W) for latents ``z`` (B, ...), each example by itself, and may
    be differentiated in forward and backward mode. ``data`` are the tokens (B, L) int64 that the latents stand for, all
    of them real, or the images, in the range that the decoder answers in. ``conditionals`` of a text decoder read the
    same latents token after token. ``notes`` are lines for the reader: what the latent and the readout are, and what to
    keep in mind. ``source`` says what the data is, ``packages`` what the decoder depends on, for the protocol. Raises
    ``UserError`` for shapes that do not fit.
    """

    name: str
    decode: Decode
    z: Tensor
    data: Tensor
    conditionals: TokenConditionals | None = None
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] | None = None
    packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        axes = 4 if self.data.is_floating_point() else 2
        if len(self.data) != len(self.z) or self.z.ndim < 2 or self.data.ndim != axes:
            raise UserError(
                f"decoder {self.name} has latents of shape {tuple(self.z.shape)} and data of shape "
                f"{tuple(self.data.shape)}: expected (B, ...), and tokens (B, L) or images (B, C, H, W)"
            )

    def subject(
        self, *, num_examples: int, num_positions: int, seed: int, whiten: bool = False, at_most: bool = False
    ) -> Subject:
        """The first ``num_examples`` examples for a diagnosis, their latents over the rms of all numbers in them.

        ``at_most``: as many as there are, where there are fewer.
        So radii and noise levels are in units of the rms, as they are for our own, whitened latents. ``whiten`` gives
        each dimension mean 0 and variance 1 over those examples instead, since DABI depends on the coordinates. Raises
        ``UserError`` for numbers that the data cannot give, and for latents or outputs that cannot be measured: no
        logits (B, L, V), no spread, or a number that is not finite.
        """
        num_examples = min(num_examples, len(self.z)) if at_most else num_examples
        check_numbers(num_examples, len(self.z), "the decoder's examples")
        z, data = self.z[:num_examples].detach(), self.data[:num_examples]
        unit = rms(z)
        if not 0 < unit < math.inf:
            raise UserError(f"decoder {self.name} has latents of rms {unit}: expected finite numbers, not all zero")
        with torch.no_grad():
            output = self.decode(z[:1])
        if not isinstance(output, Tensor) or not bool(output.isfinite().all()):
            raise UserError(f"decoder {self.name} does not give a tensor of finite numbers for its first example")
        if data.ndim == 2 and (output.shape[:-1] != (1, data.shape[1]) or int(data.max()) >= output.shape[-1]):
            raise UserError(
                f"decoder {self.name} gives logits of shape {tuple(output.shape)} for one example of {data.shape[1]} "
                f"tokens up to {int(data.max())}: expected (1, {data.shape[1]}, V), V the vocabulary"
            )
        at_once = max(1, NUMBERS_AT_ONCE // max(1, output.numel()))
        scale = whitening_of(z) if whiten else LatentScale(torch.zeros_like(z[:1]), torch.full_like(z[:1], unit))
        conditionals = None if self.conditionals is None else _Unscaled(self.conditionals, scale)
        note = f"latents whitened, {dimensions_of(z)}; " if whiten else "latents not whitened, divided by their rms; "
        return Subject(
            self.name,
            DecodeInParts(lambda x: self.decode(scale.restore(x)), at_once),
            scale.apply(z),
            data,
            positions_in(data, num_positions, seed),
            seed,
            None if conditionals is None else lambda level: conditionals,  # it does not take the noise level
            examples_at_once=at_once,
            source=self.source,
            packages=self.packages,
            notes=(*self.notes, f"{note}rms {unit:.4g} as the model gives them"),
            whitened=whiten,
            latent_rms=unit,
        )


@dataclass(frozen=True)
class LatentScale:
    """An affine map of latents: ``mean`` and ``scale`` broadcast to (B, ...)."""

    mean: Tensor
    scale: Tensor

    def apply(self, z: Tensor) -> Tensor:
        """(z - mean) / scale, 0 where the scale is."""
        usable = self.scale > 0
        return torch.where(usable, (z - self.mean) / self.scale.where(usable, torch.ones_like(self.scale)), 0.0)

    def restore(self, x: Tensor) -> Tensor:
        """The inverse. A dimension of scale 0 stays at its mean, however far ``x`` moves."""
        return x * self.scale + self.mean


def whitening_of(z: Tensor) -> LatentScale:
    """Mean and standard deviation of each dimension of latents ``z`` (B, ...) over examples and places.

    Statistics of the examples measured, not of a train split: every adapter has those. A dimension that does not vary,
    to the precision of its numbers, has scale 0.
    """
    axis = channel_axis(z)
    others = tuple(other for other in range(z.ndim) if other != axis)
    values = z.double()
    mean = values.mean(others, keepdim=True)
    scale = (values - mean).square().mean(others, keepdim=True).sqrt()
    scale = torch.where(scale > torch.finfo(z.dtype).eps * mean.abs(), scale, 0.0)
    return LatentScale(mean.to(z.dtype), scale.to(z.dtype))


def channel_axis(z: Tensor) -> int:
    """The axis of the dimensions: channels of (B, C, H, W), else the last."""
    return 1 if z.ndim == 4 else z.ndim - 1


def dimensions_of(z: Tensor) -> str:
    """What is whitened, for the reader."""
    what = "channels" if z.ndim == 4 else "dimensions"
    return f"{z.shape[channel_axis(z)]} {what} with mean 0 and variance 1 over {len(z)} examples"


class _Unscaled:
    """Conditionals for scaled latents."""

    def __init__(self, inner: TokenConditionals, scale: LatentScale) -> None:
        self.inner = inner
        self.scale = scale

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return self.inner.draw(self.scale.restore(z), generator)

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        return self.inner.logits(self.scale.restore(z), ids)


def load_callable(options: DiagnoseOptions) -> Decoder:
    """What ``module:function`` gives, called without arguments; the module is looked for in the current folder first.

    Raises ``UserError`` where module or function is not there, where either fails, and where the result is no decoder.
    """
    name, here = options.model, str(Path.cwd())
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UserError(f"callable {name!r}: expected module:function, such as my_model:decoder")
    sys.path.insert(0, here)
    try:
        function = getattr(import_module(module_name), function_name, None)
        if not callable(function):
            raise UserError(f"callable {name}: {module_name} has no function {function_name}")
        decoder = function()
    except ModuleNotFoundError as error:
        raise UserError(
            f"callable {name}: no module {error.name} in {here} or on Python's path; run in its folder or install it"
        ) from None
    except UserError:
        raise
    except Exception as error:  # the user's own code, which may raise anything
        raise UserError(f"callable {name} fails ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(here)
    if not isinstance(decoder, Decoder):
        raise UserError(f"callable {name} gives a {type(decoder).__name__}: expected a fewstep.lab.adapters.Decoder")
    return decoder
