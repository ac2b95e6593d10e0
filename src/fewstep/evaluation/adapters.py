"""The parts of a text model as the callables that :mod:`fewstep.diagnostics` takes.

B examples, K latent positions of D dimensions, L tokens, V vocabulary. Every latent position counts as real.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.diagnostics.cci import cci
from fewstep.diagnostics.result import Result
from fewstep.evaluation.conditionals import HeadConditionals, all_real, decoder_of
from fewstep.evaluation.readout_measurements import draws_in_a_batch
from fewstep.evaluation.subject import Subject
from fewstep.pipeline import TextGenerator, check_sampler
from fewstep.samplers import FlowSampler, default_sampling
from fewstep.shapes import randn
from fewstep.types import Trajectory

NUM_STEPS = 8
"""Steps of the measured trajectory: few enough to fail, enough to see a token change."""


def cci_as_read(
    conditionals: HeadConditionals, z: Tensor, noise: torch.Generator, *, draws_at_once: int | None = None
) -> Result:
    """CCI of a head at latents ``z`` (B, K, D), blurred to its level as the head blurs what it reads.

    ``draws_at_once`` as in :func:`fewstep.diagnostics.cci`; None makes batches of 128.
    """
    blurred = z + conditionals.level * randn(tuple(z.shape), z, noise)
    at_once = draws_in_a_batch(len(z)) if draws_at_once is None else draws_at_once
    return cci(conditionals, blurred, draws_at_once=at_once, generator=noise)


@torch.no_grad()
def sampled(subject: Subject, num_steps: int | None = None, reinjection: float | None = None) -> Trajectory:
    """All states from the subject's noise on, by Euler steps on the model's own grid; the same for every question.

    Where nothing is said they are ``NUM_STEPS`` deterministic steps, or what fits the model in their place
    (:func:`fewstep.samplers.default_sampling`). Raises ``UserError`` for what the model was not trained for.
    """
    identity = subject.generator.model.identity
    own = default_sampling(identity, NUM_STEPS)
    num_steps = own.num_steps if num_steps is None else num_steps
    reinjection = own.reinjection if reinjection is None else reinjection
    check_sampler(identity, num_steps, reinjection)
    flow, x_0 = subject.generator.model.flow(), subject.starts("trajectory")
    sampler = FlowSampler(flow.path, grid=subject.generator.model.identity.default_grid(), reinjection=reinjection)
    noise = subject.noise("reinjection")
    return sampler.sample(flow, x_0, num_steps=num_steps, mask=all_real(x_0), generator=noise)


def reading(subject: Subject) -> Callable[[Tensor], Tensor]:
    """Latents (B, K, D) to the tokens (B, L) that the parallel readout finds likeliest."""
    decode = decoder_of(subject.generator.model.reader())
    return torch.no_grad()(lambda z: decode(z).argmax(-1))


def continuation(
    generator: TextGenerator, num_steps: int, times: Tensor
) -> Callable[[Tensor, float, torch.Generator], Tensor]:
    """A function that goes on from (x_t, t), t one of ``times`` (N+1,), to x_1 with fresh noise in every step."""
    flow = generator.model.flow()
    sampler = FlowSampler(flow.path, grid=generator.model.identity.default_grid(), reinjection=1.0)

    @torch.no_grad()
    def continue_from(x_t: Tensor, t: float, noise: torch.Generator) -> Tensor:
        step = int((times.double() - t).abs().argmin())
        states = sampler.iterate(flow, x_t, num_steps=num_steps, mask=all_real(x_t), generator=noise, start_step=step)
        for state in states:
            last = state
        return last.x_t

    return continue_from


def velocity_of(flow: FlowModel) -> Callable[[Tensor, Tensor], Tensor]:
    """dx/dt (B, K, D) of the deterministic flow at x (B, K, D) and t (B,)."""
    return lambda x_t, t: flow.velocity(x_t, t, mask=all_real(x_t))


def estimate_of(flow: FlowModel) -> Callable[[Tensor, Tensor], Tensor]:
    """The clean estimate x1_hat (B, K, D) at x_t (B, K, D) and t (B,)."""
    return lambda x_t, t: flow.denoise(x_t, t, mask=all_real(x_t))
