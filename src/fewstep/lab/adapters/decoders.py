"""What a decoder must give to be diagnosed. B examples, K latent positions of D numbers, L tokens, V vocabulary."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.diagnostics.cci import TokenConditionals
from fewstep.diagnostics.decoding import Decode
from fewstep.errors import UserError


@dataclass(frozen=True)
class TextDecoder:
    """A readout of tokens with the latents of some text.

    ``decode`` gives logits (B, L, V) for latents ``z`` (B, ...), each example by itself, and may be differentiated in
    forward and backward mode; ``ids`` (B, L) int64 are the tokens that the latents stand for, all of them real.
    ``conditionals``, where there are any, read the same latents token after token. ``notes`` are lines for the reader:
    what the latent and the readout are, and what to keep in mind. Raises ``UserError`` for shapes that do not fit.
    """

    name: str
    decode: Decode
    z: Tensor
    ids: Tensor
    conditionals: TokenConditionals | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or len(self.ids) != len(self.z) or self.z.ndim < 2 or self.ids.is_floating_point():
            raise UserError(
                f"decoder {self.name} has latents of shape {tuple(self.z.shape)} and tokens of shape "
                f"{tuple(self.ids.shape)} and type {self.ids.dtype}: expected (B, ...) and whole numbers (B, L)"
            )


@dataclass(frozen=True)
class ImageDecoder:
    """A decoder of images with the latents of some.

    ``decode`` gives images (B, C, H, W) for latents ``z`` (B, ...), each example by itself, differentiable in both
    modes; ``images`` (B, C, H, W) are those that the latents stand for, in the range that the decoder answers in.
    Raises ``UserError`` for shapes that do not fit.
    """

    name: str
    decode: Decode
    z: Tensor
    images: Tensor
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) != len(self.z) or self.z.ndim < 2:
            raise UserError(
                f"decoder {self.name} has latents of shape {tuple(self.z.shape)} and images of shape "
                f"{tuple(self.images.shape)}: expected (B, ...) and (B, C, H, W) with equal B"
            )
