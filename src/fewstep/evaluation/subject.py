"""What a diagnosis measures: held-out text, its latents and positions in it. B examples, L tokens, P positions."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, draw_positions
from fewstep.errors import UserError
from fewstep.evaluation.conditionals import HeadConditionals, decoder_of
from fewstep.pipeline import TextGenerator
from fewstep.shapes import example_generators, randn
from fewstep.types import TokenBatch


def noise_source(seed: int, name: str) -> torch.Generator:
    """A CPU generator of (seed, name): each measurement has its own, so none depends on what else is measured."""
    (source,) = example_generators(seed, zlib.crc32(name.encode()) % 2**31, 1)
    return source


@dataclass(frozen=True)
class Subject:
    """A text model and what it is measured on.

    ``ids`` (B, L) held-out tokens without padding, ``z`` (B, K, D) their latents, ``positions`` (B, P) int64 the tokens
    measured. Everything random comes from ``seed``.
    """

    generator: TextGenerator
    ids: Tensor
    z: Tensor
    positions: Tensor
    seed: int

    @property
    def decode(self) -> Decode:
        """The parallel readout: latents (B, K, D) to logits (B, L, V). Raises ``UserError`` where there is none."""
        return decoder_of(self.generator.model.reader())

    @property
    def examples_at_once(self) -> int | None:
        """None: the logits of all examples fit the memory."""
        return None

    def conditionals(self, level: float) -> HeadConditionals:
        """The commitment head for latents with noise of ``level``. Raises ``UserError`` where there is none."""
        return HeadConditionals(self.generator.model.commitment_head(), level)

    def given_text(self) -> Decode:
        """The commitment head as a decoder, given the text's own tokens before each position."""
        return self.conditionals(0.0).given(self.ids)

    def noise(self, name: str) -> torch.Generator:
        """The source of noise of the measurement ``name``: the same whatever else is measured."""
        return noise_source(self.seed, name)

    def starts(self, name: str) -> Tensor:
        """Noise (B, K, D) from which to sample."""
        return randn(tuple(self.z.shape), self.z, self.noise(name))

    def first(self, num_examples: int, num_positions: int | None = None) -> "Subject":
        """The same with the first examples, and the first positions in each, only: for expensive measurements."""
        ids, z, positions = (value[:num_examples] for value in (self.ids, self.z, self.positions))
        return Subject(self.generator, ids, z, positions[:, :num_positions], self.seed)


@torch.no_grad()
def make_subject(
    generator: TextGenerator, tokens: TokenBatch, *, num_examples: int, num_positions: int, seed: int
) -> Subject:
    """Encode the first ``num_examples`` blocks of ``tokens`` (N, L) that hold no padding, and draw positions in them.

    Raises ``UserError`` for a model without autoencoder and readout, for numbers that the text cannot give, and for
    a model in training mode.
    """
    bundle = generator.model
    bundle.require("autoencoder", "readout")
    assert bundle.autoencoder is not None
    if any(part.training for part in bundle.parts().values()):
        raise UserError("the model is in training mode: call bundle.to(device) or .eval() before it is diagnosed")
    length = tokens.ids.shape[1]
    if not 1 <= num_positions <= length:
        raise UserError(f"positions is {num_positions}: expected a number from 1 to {length}, the tokens of a block")
    full = tokens.ids[tokens.mask.all(1)]
    if not 1 <= num_examples <= len(full):
        raise UserError(
            f"examples is {num_examples}: expected a number from 1 to {len(full)}, the held-out blocks without padding"
        )
    device = next(bundle.autoencoder.parameters()).device
    ids = full[:num_examples].to(device)
    z = bundle.autoencoder.encode(ids, torch.ones_like(ids)).z
    (source,) = example_generators(seed, 0, 1)
    positions = draw_positions(num_examples, length, num_positions, source).to(device)
    return Subject(generator, ids, z, positions, seed)


@dataclass(frozen=True)
class ImageSubject:
    """An image decoder and the latents ``z`` (B, ...) of held-out ``images``; everything random comes from ``seed``.

    ``decode`` maps latents (B, ...) to images (B, C, H, W), differentiable in forward mode too.
    """

    decode: Decode
    z: Tensor
    seed: int
    images: Tensor

    def noise(self, name: str) -> torch.Generator:
        """The source of noise of the measurement ``name``."""
        return noise_source(self.seed, name)
