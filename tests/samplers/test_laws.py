"""The law of every schedule: with the true pair, each state has exactly the path's mean and variance, at each position.

And its ends: strength 0 is the flow's ODE, strength 1 the re-noising of consistency sampling.
"""

import pytest
import torch

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import (
    AncestralReinjection,
    ChurnReinjection,
    CommitmentReinjection,
    ConstantReinjection,
    CosineReinjection,
    ElfReinjection,
    EulerSolver,
    FlowSampler,
    HeunSolver,
    LinearReinjection,
    ListedReinjection,
    MatchedCooling,
    Reinjection,
    Solver,
    early_reinjection,
    late_reinjection,
)
from fewstep.schedules import LogitNormalGrid
from tests.samplers.bases import BasisNoise, exact_states
from tests.toys import ConstantModel, MixingModel

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "variance_preserving"])
each_solver = pytest.mark.parametrize("solver", [EulerSolver(), HeunSolver()], ids=["euler", "heun"])
NUM_STEPS, NUM_POSITIONS = 5, 3
HOW_DECIDED = torch.tensor([[0.0, 0.37, 1.0]], dtype=torch.float64)

PRESERVING = [
    ConstantReinjection(0.0),
    ConstantReinjection(0.6),
    ConstantReinjection(1.0),
    ListedReinjection([0.1, 1.0, 0.0, 0.7, 0.3]),
    LinearReinjection(0.2, 0.9),
    CosineReinjection(1.0, 0.1),
    early_reinjection(0.8),
    late_reinjection(0.8),
    AncestralReinjection(1.0),
    AncestralReinjection(0.4),
    ChurnReinjection(5.0),
    ChurnReinjection(0.5, 0.3, 2.0),
    CommitmentReinjection(lambda x1_hat: HOW_DECIDED, LinearReinjection(1.0, 0.5)),
]


@each_path
@each_solver
@pytest.mark.parametrize("reinjection", PRESERVING, ids=lambda rule: type(rule).__name__)
def test_with_the_true_pair_each_state_has_exactly_the_paths_law_at_each_position(
    path: Path, solver: Solver, reinjection: Reinjection
) -> None:
    sampler = FlowSampler(path, solver, LogitNormalGrid(), reinjection, noise=BasisNoise())
    states = exact_states(sampler, NUM_STEPS, NUM_POSITIONS)
    assert len(states) == NUM_STEPS + 1
    for time, weight_of_data, weights_of_noise in states:
        t = torch.tensor(time, dtype=torch.float64)
        torch.testing.assert_close(weight_of_data, path.schedule.alpha(t).expand(NUM_POSITIONS), rtol=0, atol=1e-12)
        variance = path.schedule.sigma(t).square().expand(NUM_POSITIONS)
        torch.testing.assert_close(weights_of_noise.square().sum(-1), variance, rtol=0, atol=1e-12)


@each_path
@pytest.mark.parametrize(
    "reinjection", [ConstantReinjection(0.7), PRESERVING[-1]], ids=lambda rule: type(rule).__name__
)
def test_samples_have_the_paths_mean_and_variance_at_each_position(path: Path, reinjection: Reinjection) -> None:
    x_0 = torch.randn(20_000, NUM_POSITIONS, 1, generator=torch.Generator().manual_seed(2))
    if isinstance(reinjection, CommitmentReinjection):
        reinjection = CommitmentReinjection(lambda x1_hat: HOW_DECIDED.expand(x1_hat.shape[:2]))
    states = FlowSampler(path, reinjection=reinjection).iterate(
        ConstantModel(path, torch.tensor([[1.5]])), x_0, num_steps=4, generator=torch.Generator().manual_seed(3)
    )
    for state in states:
        t = torch.tensor(state.time)
        mean, std = (law.expand(NUM_POSITIONS) for law in (1.5 * path.schedule.alpha(t), path.schedule.sigma(t)))
        torch.testing.assert_close(state.x_t.mean(0).squeeze(-1), mean, rtol=0, atol=0.03)
        torch.testing.assert_close(state.x_t.std(0).squeeze(-1), std, rtol=0.02, atol=1e-6)


@each_path
@each_solver
@pytest.mark.parametrize(
    "reinjection",
    [
        ConstantReinjection(0.0),
        LinearReinjection(0.0, 0.0),
        early_reinjection(0.0),
        ChurnReinjection(0.0),
        AncestralReinjection(0.0),
        ElfReinjection(0.0),
        MatchedCooling(ConstantReinjection(0.0)),
        CommitmentReinjection(lambda x1_hat: torch.ones(x1_hat.shape[:2])),
        CommitmentReinjection(lambda x1_hat: torch.zeros(x1_hat.shape[:2]), 0.0),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_strength_0_is_the_flows_ode_bit_for_bit(path: Path, solver: Solver, reinjection: Reinjection) -> None:
    x_0 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4))
    plain, other = (
        FlowSampler(path, solver, LogitNormalGrid(), rule).sample(
            MixingModel(path), x_0, num_steps=4, generator=torch.Generator().manual_seed(5)
        )
        for rule in (0.0, reinjection)
    )
    for tensor, twin in zip(plain.states + plain.predictions, other.states + other.predictions, strict=True):
        assert torch.equal(tensor, twin)
    assert plain.nfe == other.nfe


@each_path
@pytest.mark.parametrize(
    "reinjection",
    [1.0, LinearReinjection(1.0, 1.0), CommitmentReinjection(lambda x1_hat: torch.zeros(x1_hat.shape[:2]))],
    ids=["constant", "linear", "all_positions_open"],
)
def test_strength_1_is_the_re_noising_of_consistency_sampling(path: Path, reinjection: float | Reinjection) -> None:
    x_0 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    trajectory = FlowSampler(path, reinjection=reinjection).sample(
        MixingModel(path), x_0, num_steps=4, generator=torch.Generator().manual_seed(5)
    )
    generator = torch.Generator().manual_seed(5)
    for s, x1_hat, state in zip(
        trajectory.times[1:-1].double(), trajectory.predictions, trajectory.states[1:-1], strict=False
    ):
        xi = torch.randn(2, 3, 4, generator=generator).double()
        expected = path.sample(x1_hat, xi, s.expand(2))
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-7)
