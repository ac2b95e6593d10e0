"""The parts of a text model as the callables that :mod:`fewstep.diagnostics` takes.

B examples, K latent positions of D dimensions, L tokens, V vocabulary. Every latent position counts as real.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.diagnostics import Cci, Decode, cci
from fewstep.evaluation.subject import Subject
from fewstep.pipeline import TextGenerator, check_sampler
from fewstep.readouts import CommitmentHead, ParallelReadout
from fewstep.samplers import EulerSolver, FlowSampler, own_steps
from fewstep.shapes import rand, randn
from fewstep.types import Trajectory

NUM_STEPS = 8
"""Steps of the trajectory that is looked at: few enough to fail, enough to see a token change."""

DRAWS_IN_A_BATCH = 128
"""Token sequences that the commitment head draws side by side."""


def decoder_of(readout: ParallelReadout) -> Decode:
    """Latents (B, K, D) to the parallel readout's logits (B, L, V)."""
    return lambda z: readout(z, _all_real(z))


class HeadConditionals:
    """A commitment head at latents that hold noise of ``level`` (rms), which it is told.

    Unlike :meth:`~fewstep.readouts.CommitmentHead.generate` it adds no noise: it reads what it is given.
    """

    def __init__(self, head: CommitmentHead, level: float) -> None:
        self.head = head
        self.level = level

    @torch.no_grad()
    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens (B, L) at temperature 1 for latents (B, K, D)."""
        u = rand((len(z), z.shape[1] * self.head.network.stride), z, generator)
        return self.head.read(z, _all_real(z), u, self._levels(z), temperature=1.0, top_p=1.0).ids

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of each of ``ids`` (B, L), given the latents and the ids before it."""
        return self.head.logits(z, _all_real(z), ids, self._levels(z))

    def given(self, ids: Tensor) -> Decode:
        """The head as a decoder whose earlier tokens are held at ``ids`` (B, L)."""
        return lambda z: self.logits(z, ids)

    def _levels(self, z: Tensor) -> Tensor:
        return torch.full((len(z),), self.level, device=z.device)


def cci_as_read(
    conditionals: HeadConditionals, z: Tensor, noise: torch.Generator, *, draws_at_once: int | None = None
) -> Cci:
    """CCI of a head at latents ``z`` (B, K, D), blurred to its level as the head blurs what it reads.

    ``draws_at_once`` as in :func:`fewstep.diagnostics.cci`; None makes batches of ``DRAWS_IN_A_BATCH``.
    """
    blurred = z + conditionals.level * randn(tuple(z.shape), z, noise)
    at_once = draws_in_a_batch(len(z)) if draws_at_once is None else draws_at_once
    return cci(conditionals, blurred, draws_at_once=at_once, generator=noise)


def draws_in_a_batch(num_examples: int) -> int:
    """How many sequences of each of ``num_examples`` latents are drawn side by side."""
    return max(1, DRAWS_IN_A_BATCH // num_examples)


@torch.no_grad()
def sampled(subject: Subject, num_steps: int | None = None, reinjection: float | None = None) -> Trajectory:
    """All states from the subject's noise on, by Euler steps on the model's own grid; the same for every question.

    Where nothing is said they are ``NUM_STEPS`` deterministic steps, or what fits the model in their place
    (:func:`fewstep.samplers.own_steps`). Raises ``UserError`` for what the model was not trained for.
    """
    identity = subject.generator.bundle.identity
    own = own_steps(identity, NUM_STEPS)
    num_steps = own.num_steps if num_steps is None else num_steps
    reinjection = own.reinjection if reinjection is None else reinjection
    check_sampler(identity, num_steps, EulerSolver(), reinjection)
    flow, x_0 = subject.generator.bundle.flow(), subject.starts("trajectory")
    sampler = FlowSampler(flow.path, None, subject.generator.default_grid(), reinjection)
    noise = subject.noise("reinjection")
    return sampler.sample(flow, x_0, num_steps=num_steps, mask=_all_real(x_0), generator=noise)


def reading(subject: Subject) -> Callable[[Tensor], Tensor]:
    """Latents (B, K, D) to the tokens (B, L) that the parallel readout finds likeliest."""
    decode = decoder_of(subject.generator.bundle.reader())
    return torch.no_grad()(lambda z: decode(z).argmax(-1))


def continuation(
    generator: TextGenerator, num_steps: int, times: Tensor
) -> Callable[[Tensor, float, torch.Generator], Tensor]:
    """A function that goes on from (x_t, t), t one of ``times`` (N+1,), to x_1 with all noise drawn anew every step."""
    flow = generator.bundle.flow()
    sampler = FlowSampler(flow.path, None, generator.default_grid(), reinjection=1.0)

    @torch.no_grad()
    def continue_from(x_t: Tensor, t: float, noise: torch.Generator) -> Tensor:
        step = int((times.double() - t).abs().argmin())
        states = sampler.iterate(flow, x_t, num_steps=num_steps, mask=_all_real(x_t), generator=noise, start_step=step)
        for state in states:
            last = state
        return last.x_t

    return continue_from


def velocity_of(flow: FlowModel) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/dt (B, K, D) of the deterministic flow at x (B, K, D) and t (B,)."""
    return lambda x_t, t: flow.velocity(x_t, t, mask=_all_real(x_t))


def estimate_of(flow: FlowModel) -> Callable[[Tensor, Tensor], Tensor]:
    """The clean estimate x1_hat (B, K, D) at x_t (B, K, D) and t (B,)."""
    return lambda x_t, t: flow.denoise(x_t, t, mask=_all_real(x_t))


def _all_real(z: Tensor) -> Tensor:
    return torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
