"""Noise to latents: one loop, whose known algorithms are choices of solver, time grid and re-injection strength.

A step from t to s has three parts: the model's prediction x1_hat at (x_t, t); a jump of the solver to t~ >= s, where
sigma_t~ = sigma_s sqrt(1 - gamma^2); and the way back to s along the prediction with fresh noise xi,

    x_s = x_t~ + (alpha_s - alpha_t~) x1_hat + gamma sigma_s xi.

With the Euler solver this is the house formula, as :mod:`fewstep.samplers.reinjection` shows.

=========  =======  ======================================  ======================================================
solver     path     gamma_k                                 algorithm
=========  =======  ======================================  ======================================================
Euler      linear   0                                       Euler on the flow's ODE (arXiv:2209.03003)
Euler      VP       0                                       DDIM, eta = 0 (arXiv:2010.02502 eq. 12)
Euler      any      sqrt(1 - (alpha_t sigma_s               ancestral sampling (DDPM, arXiv:2006.11239): DDIM with
                    / (alpha_s sigma_t))^2)                 eta = 1; ``AncestralReinjection``
Euler      any      1                                       multistep consistency sampling (arXiv:2303.01469 alg. 1);
                                                            diffusers' FlowMatchEuler with stochastic_sampling
Euler      any      constant in (0, 1)                      between the two; DDIM with sigma_s^DDIM = gamma sigma_s
Heun       linear   0                                       Heun's trapezoidal rule on the ODE, order 2
Heun       VP       0                                       the same rule in (alpha, sigma) in place of t, order 2
Heun       any      1                                       as Euler: every jump ends at t~ = 1
any        any      any, N = 1                              one-step generation: x_1 = x1_hat(x_0, 0)
=========  =======  ======================================  ======================================================

The grid says where the steps end: ``UniformGrid`` on the VP path is a uniform angle; ``CosineGrid`` on the linear path
has the same sigma; ``LogitNormalGrid`` follows the training times of ``LogitNormalTime``.

Strengths come from a rule: over time (constant, listed, linear, cosine, a window, ancestral, EDM's churn), or by latent
position from how decided it is. All keep the variance of the path. ELF's SDE, which does not, is there for comparison.
Controls tell a gain by noise from a gain by being colder: temperatures of the old noise and of the initial one,
``MatchedCooling``, and one noise reused in all steps.

A correction may stand between the model and the step: ``Snap`` replaces the clean estimate by the latents of its
likeliest tokens, everywhere or where they are decided.
"""

from fewstep.samplers.correction import Correction
from fewstep.samplers.elf import ElfReinjection, MatchedCooling
from fewstep.samplers.euler import EulerSolver
from fewstep.samplers.heun import HeunSolver
from fewstep.samplers.noise import FreshNoise, NoiseSource, ReusedNoise
from fewstep.samplers.positions import CommitmentReinjection, Decided
from fewstep.samplers.reinjection import (
    ConstantReinjection,
    ListedReinjection,
    NoisePlan,
    NoiseWeights,
    Reinjection,
    TimedPlan,
    TimedReinjection,
)
from fewstep.samplers.sampler import FlowSampler
from fewstep.samplers.snap import (
    ConfidenceRule,
    DistanceRule,
    Snap,
    SnapRule,
    SnapSteps,
    every_step,
    last_steps,
    listed_steps,
)
from fewstep.samplers.solvers import Solver, SolverStep
from fewstep.samplers.strengths import (
    AncestralReinjection,
    ChurnReinjection,
    CosineReinjection,
    LinearReinjection,
    WindowReinjection,
    early_reinjection,
    late_reinjection,
)
from fewstep.samplers.suitable import OwnSteps, check_numbers, check_suits, misfit, own_steps

__all__ = [
    "AncestralReinjection",
    "ChurnReinjection",
    "CommitmentReinjection",
    "ConfidenceRule",
    "ConstantReinjection",
    "Correction",
    "CosineReinjection",
    "Decided",
    "DistanceRule",
    "ElfReinjection",
    "EulerSolver",
    "FlowSampler",
    "FreshNoise",
    "HeunSolver",
    "LinearReinjection",
    "ListedReinjection",
    "MatchedCooling",
    "NoisePlan",
    "NoiseSource",
    "NoiseWeights",
    "OwnSteps",
    "Reinjection",
    "ReusedNoise",
    "Snap",
    "SnapRule",
    "SnapSteps",
    "Solver",
    "SolverStep",
    "TimedPlan",
    "TimedReinjection",
    "WindowReinjection",
    "check_numbers",
    "check_suits",
    "early_reinjection",
    "every_step",
    "last_steps",
    "late_reinjection",
    "listed_steps",
    "misfit",
    "own_steps",
]
