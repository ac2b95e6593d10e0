"""Noise to latents in one loop, and what fits a trained model. B examples, K positions, D dimensions, N steps.

A step from t to s >= t predicts x1_hat at (x_t, t), follows the solver to t~ >= s with sigma_t~ = kept sigma_s, then
moves back to s along the prediction and adds fresh noise xi:

    x_s = x_t~ + (alpha_s - alpha_t~) x1_hat + fresh sigma_s xi.

With Euler this is the formula of :mod:`fewstep.samplers.rules`: strength 0 is Euler on the flow's ODE on the linear
path (arXiv:2209.03003), DDIM on the variance-preserving one (arXiv:2010.02502 eq. 12), strength 1 multistep consistency
sampling (arXiv:2303.01469 algorithm 1).

With strengths by latent position there is no common t~: the solver goes to s itself, and what its state holds beyond
alpha_s x1_hat (x1_hat the latest prediction) is scaled there. For Euler this is the same formula.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers import ESTIMATES
from fewstep.errors import UserError
from fewstep.paths import Path
from fewstep.registry import resolve
from fewstep.samplers.rules import Noise, RuleLike, parse_rule
from fewstep.schedules import TimeGrid, UniformGrid, upcast
from fewstep.shapes import Generators, expand_like, randn
from fewstep.types import FlowLike, SamplerState, Trajectory

Correction = Callable[[Tensor, int, int, Tensor], tuple[Tensor, int]]
"""(x1_hat (B, K, D), step 0..N-1, N, mask (B, K) bool) -> corrected x1_hat, row by row, and its forward passes."""

Decidedness = Callable[[Tensor, Tensor], Tensor]
"""(x1_hat (B, K, D), mask (B, K) bool) -> (B, K) in [0, 1], how decided each latent position is; row by row."""

Estimate = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t (B, K, D), t (B,), self_cond (B, K, D) or None) -> x1_hat (B, K, D), one counted evaluation of the model."""

Solver = Callable[[Estimate, Path, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(estimate, path, x_t, x1_hat at (x_t, t), t (B,) < 1, s (B,) >= t) -> x_s, at s = 1 x1_hat, and the last x1_hat."""


def euler(estimate: Estimate, path: Path, x_t: Tensor, x1_hat: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """x_s = alpha_s x1_hat + sigma_s eps_hat: order 1, no evaluation of its own; DDIM on the VP path."""
    return path.sample(x1_hat, path.eps_from_x1(x_t, x1_hat, t), s), x1_hat


def heun(estimate: Estimate, path: Path, x_t: Tensor, x1_hat: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Trapezoidal rule in (alpha, sigma): order 2, one evaluation of its own. Euler where s = 1."""
    x_s, _ = euler(estimate, path, x_t, x1_hat, t, s)
    if bool((s >= 1).all()):
        return x_s, x1_hat
    x1_end = estimate(x_s, s.to(t.dtype), x1_hat)
    eps_mean = (path.eps_from_x1(x_t, x1_hat, t) + path.eps_from_x1(x_s, x1_end, s)) / 2
    alpha_t, sigma_t = path.alpha_sigma(t, x_t)
    alpha_s, sigma_s = path.alpha_sigma(s, x_t)
    return x_t + (alpha_s - alpha_t) * (x1_hat + x1_end) / 2 + (sigma_s - sigma_t) * eps_mean, x1_end


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun}


class FlowSampler:
    """Follows a model from noise to latents.

    ``path`` is the one the model was trained on, ``grid`` where the steps end (None: equal steps), ``reinjection``
    whatever :func:`fewstep.samplers.parse_rule` reads, ``solver`` a name of ``SOLVERS``, a dotted path or a function.
    ``correct`` replaces each clean estimate (:class:`fewstep.samplers.Snap`). ``decidedness`` is for rules by position
    (:meth:`fewstep.pipeline.TextGenerator.decidedness`). ``noise_scale`` is the temperature of sampling: a factor > 0
    on all noise that is drawn, x_0 and fresh. Below 1 samples are likelier and less varied.

    Controls: ``reuse_noise`` adds the same draw at every step. ``noise_temperature`` multiplies eps_hat in every new
    state; below 1 is colder, 0 leaves alpha_s x1_hat.
    """

    def __init__(
        self,
        path: Path,
        *,
        grid: TimeGrid | None = None,
        reinjection: RuleLike = 0.0,
        solver: str | Solver = "euler",
        reuse_noise: bool = False,
        noise_scale: float = 1.0,
        noise_temperature: float = 1.0,
        correct: Correction | None = None,
        decidedness: Decidedness | None = None,
    ) -> None:
        self.path = path
        self.grid: TimeGrid = UniformGrid() if grid is None else grid
        self.rule = parse_rule(reinjection)
        self.solver: Solver = resolve(SOLVERS, solver, "solver") if isinstance(solver, str) else solver
        self.reuse_noise = reuse_noise
        if not 0 < noise_scale < math.inf:
            raise ValueError(f"noise_scale is {noise_scale}: expected a finite number above 0.")
        if not 0 <= noise_temperature < math.inf:
            raise ValueError(f"noise_temperature is {noise_temperature}: expected a finite number of at least 0.")
        self.noise_scale = noise_scale
        self.noise_temperature = noise_temperature
        self.correct = correct
        self.decidedness = decidedness

    def plan(self, num_steps: int) -> tuple[Tensor, Noise]:
        """Times (N+1,) float64 and the noise of N steps. Raises ValueError where grid or rule do not fit N."""
        times = self.grid.times(num_steps).double()
        if times.shape != (num_steps + 1,) or times[0] != 0 or times[-1] != 1 or not bool((times.diff() > 0).all()):
            raise ValueError(f"time grid is {times.tolist()}: expected {num_steps + 1} rising times from 0 to 1.")
        noise = self.rule(self.path, times)
        if any(w.shape != (num_steps,) or not bool((w >= 0).all()) for w in (noise.kept, noise.fresh)):
            raise ValueError(f"re-injection rule gives {noise}: expected {num_steps} numbers >= 0 each, one per step.")
        if noise.by_position and self.decidedness is None:
            raise ValueError("re-injection by position asks how decided a position is: pass decidedness=.")
        return times, noise

    def iterate(
        self,
        model: FlowLike,
        x_0: Tensor,
        *,
        num_steps: int,
        start_step: int = 0,
        mask: Tensor | None = None,
        generator: Generators,
    ) -> Iterator[SamplerState]:
        """Yield the N+1 states from noise ``x_0`` (B, K, D) on, in float32 (float64 where ``x_0`` is).

        State k > 0 has ``x1_hat``, the prediction made at the state before it (after the correction), and ``nfe``, the
        forward passes so far of model, correction and decidedness. ``mask`` (B, K) bool is false at padding, where
        states and predictions are zero. ``generator`` draws the fresh noise; one per example
        (:func:`fewstep.shapes.example_generators`) makes a sample independent of its batch. With ``start_step`` k > 0,
        ``x_0`` is the state at step k of the same N steps and the states k .. N are yielded. Raises ``ValueError``,
        before any evaluation, for arguments that do not fit each other.
        """
        times, noise = self.plan(num_steps)
        if not 0 <= start_step <= num_steps:
            raise ValueError(f"start_step is {start_step} of {num_steps} steps: expected 0 to {num_steps}.")
        if mask is not None and mask.shape != x_0.shape[:2]:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, states {tuple(x_0.shape)}: expected one entry per position."
            )
        estimate = _CountedEstimate(model, self.correct, num_steps, mask)
        path, x_t, self_cond = self.path, _zero_padding(upcast(x_0), mask), None
        draws = _draws(x_t, generator, self.noise_scale, self.reuse_noise)
        if start_step == 0:
            kept, fresh = noise.initial
            x_t = kept * self.noise_scale * x_t
            x_t = _zero_padding(x_t + fresh * next(draws), mask) if fresh > 0 else x_t
        yield SamplerState(step=start_step, time=float(times[start_step]), x_t=x_t, x1_hat=None, nfe=0)
        for step in range(start_step, num_steps):
            estimate.step, is_last = step, step == num_steps - 1
            t, s = (x_t.new_full((len(x_t),), float(time)) for time in times[step : step + 2])
            kept, fresh = (1.0, 0.0) if is_last else (float(noise.kept[step]), float(noise.fresh[step]))
            by_position = noise.by_position and not is_last
            sigma = path.schedule.sigma(s) * kept
            t_jump = s if by_position or kept >= 1 else path.schedule.t_of_sigma(sigma).clamp(min=s)
            x1_hat = estimate(x_t, t, self_cond, t_jump)
            old: float | Tensor = kept
            new: float | Tensor = fresh
            if by_position and self.decidedness is not None:
                decided = self.decidedness(x1_hat, estimate.real(x1_hat)).to(x1_hat.dtype)
                new = expand_like(fresh * (1 - decided), x1_hat)
                old = (1 - new**2).sqrt()
                estimate.passes += 1
            x_jump, self_cond = self.solver(estimate, path, x_t, x1_hat, t, t_jump)
            x_t = _zero_padding(self._reinject(x_jump, self_cond, t_jump, s, old, new, draws), mask)
            yield SamplerState(step + 1, float(times[step + 1]), x_t, x1_hat, estimate.passes)

    def sample(
        self,
        model: FlowLike,
        x_0: Tensor,
        *,
        num_steps: int,
        start_step: int = 0,
        mask: Tensor | None = None,
        generator: Generators,
    ) -> Trajectory:
        """All of :meth:`iterate` at once: times (N+1,), N+1 states and N predictions (B, K, D)."""
        states = list(
            self.iterate(model, x_0, num_steps=num_steps, start_step=start_step, mask=mask, generator=generator)
        )
        return Trajectory(
            times=torch.tensor([state.time for state in states], dtype=torch.float32),
            states=tuple(state.x_t for state in states),
            predictions=tuple(state.x1_hat for state in states if state.x1_hat is not None),
            nfe=states[-1].nfe,
        )

    def _reinject(
        self,
        x_jump: Tensor,
        x1_hat: Tensor,
        t_jump: Tensor,
        s: Tensor,
        kept: float | Tensor,
        fresh: float | Tensor,
        draws: Iterator[Tensor],
    ) -> Tensor:
        """x_s (B, K, D) from ``x_jump`` at ``t_jump``: scale its noise, move to alpha_s along ``x1_hat``, add noise."""
        scale = self.noise_temperature * (kept if t_jump is s else 1.0)  # else the jump has left it out already
        if isinstance(scale, Tensor) or scale != 1:
            mean = (self.path.alpha_sigma(t_jump, x_jump)[0] * x1_hat).to(x_jump.dtype)
            x_jump = torch.lerp(mean, x_jump, scale)
        # Weights by position say nothing about the rest of the batch: noise is drawn even where no position uses it.
        is_drawn = isinstance(fresh, Tensor) or fresh > 0
        if t_jump is s and not is_drawn:
            return x_jump
        alpha_jump, _ = self.path.alpha_sigma(t_jump, x_jump)
        alpha_s, sigma_s = self.path.alpha_sigma(s, x_jump)
        x_s = x_jump + (alpha_s - alpha_jump) * x1_hat
        return x_s + fresh * sigma_s * next(draws) if is_drawn else x_s


class _CountedEstimate:
    """The clean estimates of a trajectory: corrected, zero at padding, counted in forward passes."""

    def __init__(self, model: FlowLike, correct: Correction | None, num_steps: int, mask: Tensor | None) -> None:
        self.model = model
        self.correct = correct
        self.num_steps = num_steps
        self.mask = mask
        self.step = 0
        self.passes = 0

    def __call__(self, x_t: Tensor, t: Tensor, self_cond: Tensor | None, s: Tensor | None = None) -> Tensor:
        """x1_hat (B, K, D) at (x_t, t), at least float32; ``s`` (B,), where the jump ends, is for flow maps."""
        passes, end = 0, {"s": s} if getattr(self.model, "two_times", False) else {}
        x1_hat = upcast(self.model.denoise(x_t, t, mask=self.mask, self_cond=self_cond, **end))
        if self.correct is not None:
            x1_hat, passes = self.correct(x1_hat, self.step, self.num_steps, self.real(x1_hat))
        self.passes += getattr(self.model, "passes", 1) + passes
        return _zero_padding(x1_hat, self.mask)

    def real(self, x: Tensor) -> Tensor:
        """The mask (B, K) bool, all true without one."""
        return torch.ones_like(x[..., 0], dtype=torch.bool) if self.mask is None else self.mask.bool()


def _draws(like: Tensor, generator: Generators, scale: float, reuse: bool) -> Iterator[Tensor]:
    """``scale`` times standard normal noise (B, K, D), drawn when asked for; with ``reuse`` the first draw always."""
    xi = None
    while True:
        if xi is None or not reuse:
            xi = scale * randn(tuple(like.shape), like, generator).to(like.dtype)
        yield xi


def _zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~expand_like(mask.bool(), x), 0.0)


TrainedFlow = Any
"""A :class:`fewstep.model.Identity`, from above: ``objective``, ``estimate`` and ``trained_nfe`` are read here."""


class DefaultSampling(NamedTuple):
    """Euler steps that fit a model: how many, and the re-injection strength."""

    num_steps: int
    reinjection: float


def default_sampling(trained: TrainedFlow, num_steps: int) -> DefaultSampling:
    """What fits the model and is closest to ``num_steps`` deterministic Euler steps.

    A model trained for a number of steps takes that number; one that keeps no noise renews it after each step.
    """
    steps = num_steps if trained.trained_nfe is None else trained.trained_nfe
    return DefaultSampling(steps, 0.0 if ESTIMATES[trained.estimate].keeps_noise or steps == 1 else 1.0)


def check_compatible(trained: TrainedFlow, sampler: FlowSampler, num_steps: int) -> None:
    """Raise ``UserError`` with what :func:`incompatibility` says, if anything."""
    if (reason := incompatibility(trained, sampler, num_steps)) is not None:
        raise UserError(reason)


def incompatibility(trained: TrainedFlow, sampler: FlowSampler, num_steps: int) -> str | None:
    """Why the model was not trained for this sampler, and what to use instead; None where it fits.

    A model with ``trained_nfe`` has learned that many jumps: Euler with exactly that number of steps. Otherwise the
    kind of its estimate decides (:class:`~fewstep.denoisers.EstimateKind`). Raises ``ValueError`` for a grid or rule
    that does not fit ``num_steps``.
    """
    _, noise = sampler.plan(num_steps)
    solver, name = getattr(sampler.solver, "__name__", repr(sampler.solver)), trained.objective or "unnamed"
    is_euler, nfe = sampler.solver is euler, trained.trained_nfe
    kind = ESTIMATES[trained.estimate]
    renews_all = num_steps == 1 or (not noise.by_position and bool((noise.kept[:-1] == 0).all()))
    if nfe is not None and not (is_euler and num_steps == nfe):
        reason = f"for euler with {nfe} steps; use those"
    elif kind.keeps_noise and not kind.has_velocity and not is_euler:
        reason = "to jump, not to follow a velocity; use euler"
    elif not kind.keeps_noise and not (is_euler and renews_all):
        reason = "to predict the end of a trajectory; use euler with re-injection strength 1, or with 1 step"
    else:
        return None
    given = f"solver {solver} with {num_steps} steps and this re-injection"
    return f"{given} does not fit this model: its objective ({name}) trained it {reason}"


def check_numbers(num_samples: int, num_steps: int, batch_size: int) -> None:
    """Raise ``UserError`` for a number below 1."""
    for name, value in (("num_samples", num_samples), ("num_steps", num_steps), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: expected a whole number of at least 1")
