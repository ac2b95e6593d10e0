"""The parts of a text model as the callables that :mod:`fewstep.diagnostics` takes.

B examples, K latent positions of D dimensions, L tokens, V vocabulary. Latents that are zero are padding.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.diagnostics.cci import cci
from fewstep.diagnostics.decoding import Decode
from fewstep.diagnostics.result import Result
from fewstep.model import SavedModel
from fewstep.readouts import CommitmentHead, TokenDraw
from fewstep.samplers import FlowSampler
from fewstep.shapes import rand, randn, real_positions
from fewstep.types import KnownTokens, Readout

DRAWS_IN_A_BATCH = 128
"""Token sequences that a head draws side by side."""


def all_real(z: Tensor) -> Tensor:
    """A mask (B, K) that is true everywhere, for latents ``z`` (B, K, D)."""
    return torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)


def decoder_of(readout: Readout) -> Decode:
    """Latents (B, K, D) to the parallel readout's logits (B, L, V)."""
    return lambda z: readout.logits(z, real_positions(z))


class HeadConditionals:
    """A commitment head at latents that hold noise of ``level`` (rms), which it is given.

    The ``known`` tokens (B, L) of the latents' texts stand in every draw. Unlike
    :meth:`~fewstep.readouts.CommitmentHead.generate` it adds no noise: it reads what it is given.
    """

    def __init__(self, head: CommitmentHead, level: float, known: KnownTokens | None = None) -> None:
        self.head = head
        self.level = level
        self.known = known

    @torch.no_grad()
    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens (B, L) at temperature 1 for latents (B, K, D)."""
        u = rand((len(z), z.shape[1] * self.head.network.stride), z, generator)
        known = self.known
        if known is not None:  # several draws of the same texts
            count = len(z) // len(known.ids)
            known = KnownTokens(known.ids.repeat(count, 1), known.mask.repeat(count, 1))
        return self.head.read(z, real_positions(z), u, self._levels(z), TokenDraw(known=known)).ids

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of each of ``ids`` (B, L), given the latents and the ids before it."""
        return self.head.logits(z, real_positions(z), ids, self._levels(z))

    def _levels(self, z: Tensor) -> Tensor:
        return torch.full((len(z),), self.level, device=z.device)


def cci_as_read(conditionals: HeadConditionals, z: Tensor, noise: torch.Generator) -> Result:
    """CCI of a head at latents ``z`` (B, K, D), blurred to its level as the head blurs what it reads."""
    real = real_positions(z)
    blurred = (z + conditionals.level * randn(tuple(z.shape), z, noise)) * real[..., None]
    written = real.repeat_interleave(conditionals.head.network.stride, dim=1)
    if conditionals.known is not None:
        written &= ~conditionals.known.mask
    at_once = max(1, DRAWS_IN_A_BATCH // len(z))
    return cci(conditionals, blurred, written=written, draws_at_once=at_once, generator=noise)


def continuation(model: SavedModel, times: Tensor) -> Callable[[Tensor, float, torch.Generator], Tensor]:
    """A function that goes on from (x_t, t), t one of ``times`` (N+1,), to x_1 with fresh noise in every step."""
    flow = model.flow()
    sampler = FlowSampler(flow.path, grid=model.identity.default_grid(), reinjection=1.0)

    @torch.no_grad()
    def continue_from(x_t: Tensor, t: float, noise: torch.Generator) -> Tensor:
        step = int((times.double() - t).abs().argmin())
        mask = all_real(x_t)
        states = sampler.iterate(flow, x_t, num_steps=len(times) - 1, mask=mask, generator=noise, start_step=step)
        *_, last = states
        return last.x_t

    return continue_from
