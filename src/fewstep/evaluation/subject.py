"""What a diagnosis measures: a decoder, latents of held-out data, and whatever else the model has.

B examples, L tokens, P positions, V vocabulary.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.diagnostics.boundary import BoundaryPoints, segment_boundary, segment_points
from fewstep.diagnostics.cci import TokenConditionals
from fewstep.diagnostics.decoding import Decode, DecodeInParts, draw_positions, read_tokens
from fewstep.diagnostics.margins import Margins, margins
from fewstep.errors import UserError
from fewstep.evaluation.adapters import HeadConditionals, all_real, decoder_of
from fewstep.model import SavedModel
from fewstep.samplers import FlowSampler, default_sampling
from fewstep.shapes import example_generators, randn
from fewstep.types import TokenBatch, Trajectory

NUMBERS_AT_ONCE = 2**25
"""Outputs of a decoder that are held at once, 128 MiB in float32; a diagnostic holds a few such tensors."""
NUM_STEPS = 8
"""Steps of the measured trajectory: few enough to fail, enough to see a token change."""
MIN_EXAMPLES = 2
"""One example has no interval."""


def noise_source(seed: int, name: str) -> torch.Generator:
    """A CPU generator of (seed, name): each measurement has its own, so none depends on what else is measured."""
    return example_generators(seed, zlib.crc32(name.encode()) % 2**31, 1)[0]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model of text or of images, ours or another package's, and what it is measured on.

    ``decode`` maps latents (B, ...) to logits (B, L, V) or to images, and ``z`` (B, ...), of an rms of about 1, are the
    latents of held-out ``data``: tokens (B, L) int64 without padding, or images (B, C, H, W). ``positions`` (B, P) are
    the tokens measured, none for images. ``conditionals(level)`` is the autoregressive readout for
    latents with noise of that level (None: a model without head); it blurs generated latents to ``trust_level``.
    ``model`` is ours, None for a decoder of another package. Everything random comes from ``seed``. The logits of
    ``examples_at_once`` examples are held at once (None: all). For the protocol: ``source`` says what the data is,
    ``packages`` what the model depends on, ``whitened`` whether each dimension of ``z`` has the same variance, as that
    of our models has, and ``latent_rms`` what the latents were scaled down by; ``notes`` are for the reader.
    """

    name: str
    decode: Decode
    z: Tensor
    data: Tensor
    positions: Tensor
    seed: int
    conditionals: Callable[[float], TokenConditionals] | None = None
    trust_level: float = 0.0
    model: SavedModel | None = None
    examples_at_once: int | None = None
    source: Mapping[str, Any] | None = None
    packages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    whitened: bool = True
    latent_rms: float = 1.0

    @property
    def kind(self) -> Literal["text", "images"]:
        """Of the data."""
        return "images" if self.data.is_floating_point() else "text"

    @property
    def parts(self) -> set[str]:
        """The parts of the model that a measurement may ask for; "head" is an autoregressive readout."""
        own = set() if self.model is None else set(self.model.parts())
        return own | {"readout"} | ({"head"} if self.conditionals else set())

    def noise(self, name: str) -> torch.Generator:
        """The source of noise of the measurement ``name``: the same whatever else is measured."""
        return noise_source(self.seed, name)

    def starts(self, name: str) -> Tensor:
        """Noise shaped like ``z`` from which to sample."""
        return randn(tuple(self.z.shape), self.z, self.noise(name))

    def first(self, num_examples: int, num_positions: int | None = None) -> "Subject":
        """The same with the first examples, and the first positions in each (None: all), only."""
        size = (num_examples, num_positions)
        if size not in self._smaller:
            z, data, positions = (value[:num_examples] for value in (self.z, self.data, self.positions))
            self._smaller[size] = replace(self, z=z, data=data, positions=positions[:, :num_positions])
        return self._smaller[size]

    def read_head(self, level: float) -> TokenConditionals:
        """The autoregressive readout of a model that has one, for latents with noise of ``level``."""
        assert self.conditionals is not None
        return self.conditionals(level)

    def given_text(self) -> Decode:
        """The autoregressive readout as a decoder, given the text's own tokens before each position."""
        with torch.inference_mode(False):  # no tensor of that mode may stand in a backward pass
            ids = self.data.clone()
        return DecodeInParts(self.read_head(0.0).logits, self.examples_at_once or len(self.z), (ids,))

    def read(self, z: Tensor) -> Tensor:
        """The tokens (B, L) that the parallel readout finds likeliest."""
        return read_tokens(self.decode, z)

    @property
    def flow(self) -> FlowModel:
        """Of a model of ours."""
        assert self.model is not None
        return self.model.flow()

    # What several measurements look at is computed once.

    @cached_property
    def _smaller(self) -> "dict[tuple[int, int | None], Subject]":
        return {}

    @cached_property
    def margins(self) -> Margins:
        """Of the data's latents, at the positions."""
        return margins(self.decode, self.z, self.positions)

    @cached_property
    def segments(self) -> BoundaryPoints:
        """Where the segment from each latent to the next crosses a boundary; for images its midpoint."""
        other = self.z.roll(1, 0)
        if self.kind == "images":
            return segment_points(self.z, other, "midpoint")
        return segment_boundary(self.decode, self.z, other, self.positions)

    @cached_property
    def trajectory(self) -> Trajectory:
        """What the flow makes of the subject's noise, by :data:`NUM_STEPS` deterministic Euler steps on the model's own
        grid, or what fits the model in their place (:func:`fewstep.samplers.default_sampling`)."""
        assert self.model is not None
        identity, flow, x_0 = self.model.identity, self.flow, self.starts("trajectory")
        own = default_sampling(identity, NUM_STEPS)
        sampler = FlowSampler(flow.path, grid=identity.default_grid(), reinjection=own.reinjection)
        noise = self.noise("reinjection")
        with torch.no_grad():
            return sampler.sample(flow, x_0, num_steps=own.num_steps, mask=all_real(x_0), generator=noise)


def text_subject(
    model: SavedModel,
    tokens: TokenBatch,
    *,
    num_examples: int,
    num_positions: int,
    seed: int,
    name: str = "the model",
    source: Mapping[str, Any] | None = None,
    at_most: bool = False,
) -> Subject:
    """A text model, the first ``num_examples`` blocks of ``tokens`` (N, L) that hold no padding, and positions in them.

    ``at_most``: as many as there are, where there are fewer. Raises ``UserError`` for a model without autoencoder and
    readout, for numbers that the text cannot give, and for a model in training mode.
    """
    if any(part.training for part in model.parts().values()):
        raise UserError("the model is in training mode: call model.to(device) or .eval() before it is diagnosed")
    full = tokens.ids[tokens.mask.all(1)]
    num_examples = min(num_examples, len(full)) if at_most else num_examples
    check_numbers(num_examples, len(full), "the held-out blocks without padding")
    ids = full[:num_examples].to(model.device)
    positions = positions_in(ids, num_positions, seed)
    with torch.no_grad():
        z = model.encoder().encode(ids, torch.ones_like(ids)).z
    at_once = max(1, NUMBERS_AT_ONCE // (ids.shape[1] * len(model.tokenizer)))
    head = None if model.head is None else model.commitment_head()
    return Subject(
        name,
        DecodeInParts(decoder_of(model.reader()), at_once),
        z,
        ids,
        positions,
        seed,
        None if head is None else lambda level: HeadConditionals(head, level),
        0.0 if head is None else head.trust_level,
        model,
        at_once,
        source=source,
        packages=("transformers", "tokenizers"),
    )


def positions_in(data: Tensor, num_positions: int, seed: int) -> Tensor:
    """Positions (B, P) drawn in tokens ``data`` (B, L); none in images. Raises ``UserError`` for more than L."""
    if data.is_floating_point():
        return torch.empty(len(data), 0, dtype=torch.long, device=data.device)
    check_positions(num_positions, data.shape[1])
    (source,) = example_generators(seed, 0, 1)
    return draw_positions(len(data), data.shape[1], num_positions, source).to(data.device)


def check_positions(num_positions: int, length: int) -> None:
    """Raise ``UserError`` unless blocks of ``length`` tokens have so many positions."""
    if not 1 <= num_positions <= length:
        raise UserError(f"positions is {num_positions}: expected a number from 1 to {length}, the tokens of a block")


def check_numbers(num_examples: int, available: int, what: str) -> None:
    """Raise ``UserError`` for a number of examples that the data cannot give."""
    if not MIN_EXAMPLES <= num_examples <= available:
        raise UserError(f"examples is {num_examples}: expected a number from {MIN_EXAMPLES} to {available}, {what}")
