"""What a decoder of another package must give to be diagnosed, and one that a function of the user's makes.

B examples, L tokens, V vocabulary.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.diagnostics.cci import TokenConditionals
from fewstep.diagnostics.decoding import Decode, DecodeInParts, rms
from fewstep.errors import UserError, first_line
from fewstep.evaluation.subject import NUMBERS_AT_ONCE, Subject, check_numbers, positions_in
from fewstep.registry import import_attribute


@dataclass(frozen=True)
class Decoder:
    """A readout of tokens, or a decoder of images, with the latents of some data.

    ``decode`` gives logits (B, L, V) or images (B, C, H, W) for latents ``z`` (B, ...), each example by itself, and may
    be differentiated in forward and backward mode. ``data`` are the tokens (B, L) int64 that the latents stand for, all
    of them real, or the images, in the range that the decoder answers in. ``conditionals`` of a text decoder read the
    same latents token after token. ``notes`` are lines for the reader; ``source`` says what the data is, ``packages``
    what the decoder depends on, for the protocol. Raises ``UserError`` for shapes that do not fit.
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

        So radii and noise levels are in units of the rms, as they are for our own, whitened latents. ``whiten`` gives
        each dimension mean 0 and variance 1 over those examples instead, since DABI depends on the coordinates.
        ``at_most``: as many as there are, where there are fewer. Raises ``UserError`` for numbers that the data cannot
        give, and for latents or outputs that cannot be measured: no logits (B, L, V), no spread, or a number that is
        not finite.
        """
        num_examples = min(num_examples, len(self.z)) if at_most else num_examples
        check_numbers(num_examples, len(self.z), "the decoder's examples")
        z, data = self.z[:num_examples].detach(), self.data[:num_examples]
        unit = rms(z)
        if not 0 < unit < math.inf:
            raise UserError(f"decoder {self.name} has latents of rms {unit}: expected finite numbers, not all zero")
        mean, scale = standardisation_of(z) if whiten else (torch.zeros_like(z[:1]), torch.full_like(z[:1], unit))

        def restored(x: Tensor) -> Tensor:  # a dimension of scale 0 stays at its mean, however far x moves
            return x * scale + mean

        at_once = max(1, NUMBERS_AT_ONCE // max(1, self._checked_output(z[:1], data).numel()))
        conditionals = None if self.conditionals is None else _Restoring(self.conditionals, restored)
        what = f"{z.shape[1]} channels" if z.ndim == 4 else f"{z.shape[-1]} dimensions"
        whitened = f"whitened, {what} with mean 0 and variance 1 over {len(z)} examples"
        note = f"latents {whitened if whiten else 'not whitened, divided by their rms'}; rms {unit:.4g}"
        return Subject(
            self.name,
            DecodeInParts(lambda x: self.decode(restored(x)), at_once),
            ((z - mean) / scale).where(scale > 0, 0.0),
            data,
            positions_in(data, num_positions, seed),
            seed,
            None if conditionals is None else lambda level: conditionals,  # it does not take the noise level
            examples_at_once=at_once,
            source=self.source,
            packages=self.packages,
            notes=(*self.notes, f"{note} as the model gives them"),
            whitened=whiten,
            latent_rms=unit,
        )

    @torch.no_grad()
    def _checked_output(self, z: Tensor, data: Tensor) -> Tensor:
        """What the decoder gives for its first example."""
        output = self.decode(z)
        if not isinstance(output, Tensor) or not bool(output.isfinite().all()):
            raise UserError(f"decoder {self.name} does not give a tensor of finite numbers for its first example")
        if data.ndim == 2 and (output.shape[:-1] != (1, data.shape[1]) or int(data.max()) >= output.shape[-1]):
            raise UserError(
                f"decoder {self.name} gives logits of shape {tuple(output.shape)} for one example of {data.shape[1]} "
                f"tokens up to {int(data.max())}: expected (1, {data.shape[1]}, V), V the vocabulary"
            )
        return output


def standardisation_of(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension of latents (B, ..., D), or channel of (B, C, H, W), broadcastable.

    Of the examples measured, not of a train split: every adapter has those. A dimension that does not vary, to the
    precision of its numbers, has deviation 0.
    """
    others = (0, 2, 3) if z.ndim == 4 else tuple(range(z.ndim - 1))
    values = z.double()
    mean = values.mean(others, keepdim=True)
    scale = (values - mean).square().mean(others, keepdim=True).sqrt()
    scale = torch.where(scale > torch.finfo(z.dtype).eps * mean.abs(), scale, 0.0)
    return mean.to(z.dtype), scale.to(z.dtype)


@dataclass(frozen=True)
class _Restoring:
    """Conditionals for latents in another unit, which ``restored`` gives their own."""

    inner: TokenConditionals
    restored: Callable[[Tensor], Tensor]

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return self.inner.draw(self.restored(z), generator)

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        return self.inner.logits(self.restored(z), ids)


def load_callable(options: DiagnoseOptions) -> Decoder:
    """What ``module:function`` gives, called without arguments; the module is looked for in the current folder first.

    Raises ``UserError`` where module or function is missing or fails, and where the result is no decoder.
    """
    name, here = options.model, str(Path.cwd())
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(f"callable {name!r}: expected module:function, such as my_model:decoder")
    sys.path.insert(0, here)
    try:
        decoder = import_attribute(f"{module}.{function}", "callable")()
    except UserError:
        raise
    except Exception as error:  # the user's own code, which may raise anything
        raise UserError(f"callable {name} fails ({type(error).__name__}: {first_line(error)})") from error
    finally:
        sys.path.remove(here)
    if not isinstance(decoder, Decoder):
        raise UserError(f"callable {name} gives a {type(decoder).__name__}: expected a fewstep.lab.adapters.Decoder")
    return decoder
