"""The one sampling loop."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.samplers.correction import CorrectedModel, Correction, estimate
from fewstep.samplers.euler import EulerSolver
from fewstep.samplers.noise import FreshNoise, NoiseSource
from fewstep.samplers.reinjection import (
    UNTOUCHED,
    NoisePlan,
    NoiseWeights,
    Reinjection,
    TimedPlan,
    as_reinjection,
    jump_time,
    reinject,
    scale_noise,
)
from fewstep.samplers.solvers import Solver, SolverStep
from fewstep.schedules import TimeGrid, UniformGrid, upcast
from fewstep.shapes import expand_like
from fewstep.types import FlowLike, SamplerState, Trajectory


class FlowSampler:
    """Follows a model from noise to latents, with re-injection of noise (see the package for the family it spans).

    ``path`` must be the one the model was trained on. ``solver`` and ``grid`` default to Euler and equal steps.
    ``reinjection`` is a strength in [0, 1], one a step, or a rule (:class:`fewstep.samplers.Reinjection`).

    The controls: ``noise`` is where the re-injected noise comes from, fresh in every step by default.
    ``noise_temperature`` multiplies eps_hat in the state that each step makes, and ``initial_temperature`` the noise
    x_0; neither touches the fresh noise. 1 is the path's law, below is colder, and 0 leaves alpha_s x1_hat. The scaled
    noise goes into the next estimate, so that without fresh noise and with the true pair, the state after k steps has
    noise_temperature^k of the noise it should.

    ``correct`` replaces each clean estimate before anything is made of it (:class:`fewstep.samplers.Snap`): state,
    re-injection by position and self-conditioning go by the corrected one. None takes the model at its word.

    Raises ValueError for strengths outside [0, 1] and temperatures below 0 or infinite. Gradients are recorded or not
    as the caller's context says; generation wants ``torch.inference_mode()``.
    """

    def __init__(
        self,
        path: Path,
        solver: Solver | None = None,
        grid: TimeGrid | None = None,
        reinjection: float | Sequence[float] | Reinjection = 0.0,
        *,
        noise: NoiseSource | None = None,
        noise_temperature: float = 1.0,
        initial_temperature: float = 1.0,
        correct: Correction | None = None,
    ) -> None:
        self.path = path
        self.solver: Solver = EulerSolver() if solver is None else solver
        self.grid: TimeGrid = UniformGrid() if grid is None else grid
        self.reinjection = as_reinjection(reinjection)
        self.noise: NoiseSource = FreshNoise() if noise is None else noise
        self.noise_temperature = _checked_temperature("noise_temperature", noise_temperature)
        self.initial_temperature = _checked_temperature("initial_temperature", initial_temperature)
        self.correct = correct

    def iterate(
        self,
        model: FlowLike,
        x_0: Tensor,
        *,
        num_steps: int,
        start_step: int = 0,
        mask: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> Iterator[SamplerState]:
        """Yield the N+1 states from noise ``x_0`` (B, K, D) on.

        State k > 0 carries ``x1_hat``, the prediction that was made at the state before it, corrected where there is a
        correction, and ``nfe``, which counts the correction's passes too. ``mask`` (B, K) bool is false at padding,
        where states and predictions are held at zero. ``generator`` draws the re-injected noise; a sequence of one an
        example (:func:`fewstep.shapes.example_generators`) makes a sample independent of its batch. Where all strengths
        are 0, and in the last step, nothing is drawn. States are float32, or float64 where ``x_0`` is. A rule that
        depends on the prediction draws in every step but the last.

        With ``start_step`` k > 0, ``x_0`` is the state at step k of the same N steps, and the states k .. N are
        yielded: where nothing is drawn, the rest of the trajectory it came from. What concerns the initial noise does
        not act on it. The first evaluation then has no prediction to be conditioned on, as at step 0, and evaluations
        are counted from there.

        Raises ValueError, before any evaluation, for ``num_steps`` < 1, ``start_step`` outside 0 .. N, a mask or a
        list of strengths that does not fit, and strengths over time outside [0, 1].
        """
        times = self._times(num_steps)
        plan = self.reinjection.plan(self.path, times)
        if not 0 <= start_step <= num_steps:
            raise ValueError(f"start_step is {start_step} of {num_steps} steps: expected 0 to {num_steps}.")
        if mask is not None and mask.shape != x_0.shape[:2]:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, states {tuple(x_0.shape)}: expected one entry a position."
            )
        return self._states(model, x_0, start_step, times, plan, mask, generator)

    def sample(
        self,
        model: FlowLike,
        x_0: Tensor,
        *,
        num_steps: int,
        start_step: int = 0,
        mask: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> Trajectory:
        """The whole of :meth:`iterate` at once: times (N+1,), N+1 states and N predictions (B, K, D).

        From ``start_step`` k on there are k fewer of each.
        """
        states = list(
            self.iterate(model, x_0, num_steps=num_steps, start_step=start_step, mask=mask, generator=generator)
        )
        return Trajectory(
            times=torch.tensor([state.time for state in states], dtype=torch.float32),
            states=tuple(state.x_t for state in states),
            predictions=tuple(state.x1_hat for state in states if state.x1_hat is not None),
            nfe=states[-1].nfe,
        )

    def _times(self, num_steps: int) -> Tensor:
        times = self.grid.times(num_steps).double()
        if times.shape != (num_steps + 1,) or times[0] != 0 or times[-1] != 1 or not bool((times.diff() > 0).all()):
            raise ValueError(f"time grid is {times.tolist()}: expected {num_steps + 1} rising times from 0 to 1.")
        return times

    def _states(
        self,
        model: FlowLike,
        x_0: Tensor,
        start_step: int,
        times: Tensor,
        plan: NoisePlan,
        mask: Tensor | None,
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> Iterator[SamplerState]:
        x_t = _zero_padding(upcast(x_0), mask)
        draws = self.noise.draws(x_t, generator)
        if start_step == 0:
            x_t = _zero_padding(self._initial(x_t, plan.initial, draws), mask)
        last, self_cond, nfe, plain = len(times) - 2, None, 0, model
        yield SamplerState(step=start_step, time=float(times[start_step]), x_t=x_t, x1_hat=None, nfe=0)
        for k in range(start_step, last + 1):
            passes = 1
            if self.correct is not None:
                model = CorrectedModel(plain, self.correct, k, last + 1)
                passes += self.correct.passes(x_t.shape[1], k, last + 1)
            t, s = (x_t.new_full((len(x_t),), float(time)) for time in times[k : k + 2])
            end = self._jump_end(plan, k, s, last)
            x1_hat = _zero_padding(upcast(estimate(model, x_t, t, end, mask, self_cond)), mask)
            weights = UNTOUCHED if k == last else plan.weights(k, x1_hat, mask)
            step = self._step(model, x_t, x1_hat, t, s, weights, mask, draws)
            x_t, self_cond = _zero_padding(step.x_s, mask), _zero_padding(step.x1_hat, mask)
            nfe += passes * (1 + step.evaluations)
            yield SamplerState(step=k + 1, time=float(times[k + 1]), x_t=x_t, x1_hat=x1_hat, nfe=nfe)

    def _jump_end(self, plan: NoisePlan, step: int, s: Tensor, last: int) -> Tensor:
        """Where the deterministic part of a step ends, for a flow map: t~, where the rule is known before the estimate
        (at strength 1 this is t = 1, and the jump a consistency model's), else s."""
        if step == last or not isinstance(plan, TimedPlan):
            return s
        kept = plan.steps[step].kept
        return s if isinstance(kept, Tensor) or kept >= 1 else jump_time(self.path, s, kept)

    def _initial(self, x_0: Tensor, weights: NoiseWeights, draws: Iterator[Tensor]) -> Tensor:
        """The state at t = 0, where all is noise."""
        kept = weights.kept * self.initial_temperature
        x_0 = x_0 if kept == 1 else kept * x_0
        return x_0 if weights.fresh == 0 else x_0 + weights.fresh * next(draws)

    def _step(
        self,
        model: FlowLike,
        x_t: Tensor,
        x1_hat: Tensor,
        t: Tensor,
        s: Tensor,
        weights: NoiseWeights,
        mask: Tensor | None,
        draws: Iterator[Tensor],
    ) -> SolverStep:
        kept, fresh = weights.kept, weights.fresh
        t_jump, scale = s, kept * self.noise_temperature  # what the jump does not leave out is scaled after it
        if not isinstance(kept, Tensor) and kept < 1:  # at 1, t~ = s without the rounding of the inverse
            t_jump, scale = jump_time(self.path, s, kept), self.noise_temperature
        jump = self.solver.step(model, self.path, x_t, x1_hat, t, t_jump, mask=mask)
        x_s = jump.x_s
        if isinstance(scale, Tensor) or scale != 1:
            x_s = scale_noise(self.path, x_s, jump.x1_hat, t_jump, scale)
        # Weights by position say nothing of the batch: noise is drawn even where this batch has no use for it.
        xi = next(draws) if isinstance(fresh, Tensor) or fresh > 0 else None
        if t_jump is not s or xi is not None:
            x_s = reinject(self.path, x_s, jump.x1_hat, t_jump, s, fresh, xi)
        return SolverStep(x_s, jump.x1_hat, jump.evaluations)


def _checked_temperature(name: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}: expected a finite number of at least 0 (1 leaves the noise as it is).")
    return float(value)


def _zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~expand_like(mask.bool(), x), 0.0)
