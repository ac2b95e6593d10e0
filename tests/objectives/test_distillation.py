"""What progressive distillation and reflow have in common: a teacher that never moves, costs, padding, refusals."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType, RegressionDenoiser
from fewstep.objectives.few_step import FewStepObjective
from fewstep.objectives.grids import grid_of
from fewstep.objectives.progressive import ProgressiveDistillation
from fewstep.objectives.reflow import Reflow
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.readouts import LinearReadout
from fewstep.schedules import LogitNormalTime, TimeSampler, UniformTime
from fewstep.types import Latents, LossOutput, TokenBatch
from tests.nn.builders import randomised
from tests.objectives.teachers import Answering, D, K, Mixing, gaussian_flow, some_latents

each_path = pytest.mark.parametrize(
    "path", [linear_path(), variance_preserving_path()], ids=["linear", "variance_preserving"]
)
both_predictions = pytest.mark.parametrize("prediction", ["x1", "velocity"])


def objectives(cross_entropy_weight: float = 0.0, fisher_weight: float = 0.0) -> list[FewStepObjective]:
    return [
        ProgressiveDistillation(
            UniformTime(), num_steps=2, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight
        ),
        ProgressiveDistillation(LogitNormalTime(), num_steps=1, teacher_steps=3),
        Reflow(UniformTime(), num_steps=3, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight),
        Reflow(LogitNormalTime(), num_steps=3, second_order=False, times_per_pair=2),
    ]


each = pytest.mark.parametrize("which", range(4), ids=["progressive", "one_step", "reflow", "reflow_euler"])


def run(objective: FewStepObjective, model: FlowModel, teacher: FlowModel | None, latents: Latents) -> LossOutput:
    return objective.forward(
        model, latents, tokens=None, readout=None, generator=torch.Generator().manual_seed(1), teacher=teacher
    )


@each
def test_a_step_costs_what_the_objective_says(which: int, generator: torch.Generator) -> None:
    objective, (student, teacher) = objectives()[which], (gaussian_flow(linear_path()) for _ in range(2))
    output = run(objective, student, teacher, some_latents(8, generator))
    assert output.per_example.shape == (8,) and output.loss.requires_grad
    assert objective.passes_per_step == 3 * student.network.rows / 8 + teacher.network.rows / 8


@each
@each_path
@both_predictions
def test_the_teacher_never_moves_and_the_student_does(
    which: int, path: Path, prediction: PredictionType, generator: torch.Generator
) -> None:
    objective, (student, teacher) = objectives()[which], (gaussian_flow(path, prediction) for _ in range(2))
    with torch.no_grad():
        student.network.shift += 1.0
    optimiser = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.01, weight_decay=0.1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for _ in range(3):
        optimiser.zero_grad()
        run(objective, student, teacher, some_latents(4, generator)).loss.backward()
        assert all(one.grad is None for one in teacher.parameters())
        optimiser.step()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert (student.network.shift != 1.0).all()


@each
@both_predictions
def test_what_stands_at_padding_never_contributes(
    which: int, prediction: PredictionType, generator: torch.Generator
) -> None:
    objective, path = objectives()[which], linear_path()
    student, teacher = (FlowModel(Answering(Mixing(path), prediction), path, prediction) for _ in range(2))
    latents = some_latents(4, generator, [3, 1, 2, 3])
    junk = Latents(torch.where(latents.mask[..., None], latents.z, 100.0), latents.mask)
    one, two = (run(objective, student, teacher, z).per_example for z in (latents, junk))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("which", [0, 2], ids=["progressive", "reflow"])
def test_terms_through_the_readout_follow_the_teacher_and_not_the_data(which: int, generator: torch.Generator) -> None:
    plain, weighed = objectives()[which], objectives(cross_entropy_weight=0.5, fisher_weight=2.0)[which]
    latents, readout = some_latents(4, generator, [3, 1, 2, 3]), randomised(lambda: LinearReadout(5, D))
    student, teacher = (gaussian_flow(linear_path()) for _ in range(2))
    with torch.no_grad():
        student.network.shift += 0.3

    def loss(ids: Tensor) -> LossOutput:
        return weighed.forward(
            student,
            latents,
            tokens=TokenBatch(ids, latents.mask),
            readout=readout,
            generator=torch.Generator().manual_seed(1),
            teacher=teacher,
        )

    one, other = (loss(torch.full((4, K), token)) for token in (0, 1))
    assert torch.equal(one.loss, other.loss)
    squared = run(plain, student, teacher, latents).loss
    torch.testing.assert_close(one.loss, squared + one.terms["cross_entropy"] + one.terms["fisher"])
    assert one.terms["cross_entropy"] > 0 and one.terms["fisher"] > 0


@each
def test_it_is_refused_without_a_teacher_and_for_a_network_of_two_times(which: int, generator: torch.Generator) -> None:
    objective, teacher, latents = objectives()[which], gaussian_flow(linear_path()), some_latents(4, generator)
    with pytest.raises(ValueError, match="give it as the teacher"):
        run(objective, gaussian_flow(linear_path()), None, latents)
    network = randomised(lambda: RegressionDenoiser(D, K, width=8, depth=1, num_heads=2, two_times=True))
    with pytest.raises(ValueError, match="two_times=False"):
        run(objective, FlowModel(network, linear_path(), "x1"), teacher, latents)


@each
def test_nothing_is_kept_between_steps(which: int, generator: torch.Generator) -> None:
    objective, latents = objectives()[which], some_latents(4, generator, [3, 1, 2, 3])
    student, teacher = (gaussian_flow(linear_path()) for _ in range(2))
    with torch.no_grad():
        student.network.gain += 0.3
    before = run(objective, student, teacher, latents).per_example
    run(objective, student, teacher, some_latents(2, generator))
    assert torch.equal(run(objective, student, teacher, latents).per_example, before)


@pytest.mark.parametrize(
    "settings", [{"num_steps": 0}, {"num_steps": 2, "teacher_steps": 1}, {"num_steps": 2, "fisher_weight": -1.0}]
)
def test_progressive_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ProgressiveDistillation(UniformTime(), **settings)


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"times_per_pair": 0}])
def test_reflow_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Reflow(UniformTime(), **settings)


@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormalTime(0.3, 1.2)], ids=["uniform", "logit_normal"])
def test_a_coarse_grid_is_part_of_every_finer_one_and_holds_equal_shares_of_the_times(sampler: TimeSampler) -> None:
    coarse = grid_of(sampler).times(4)
    assert torch.equal(coarse, grid_of(sampler).times(12)[::3])
    drawn = sampler.sample(4000, torch.Generator().manual_seed(0))
    shares = [((drawn > low) & (drawn <= high)).float().mean() for low, high in pairwise(coarse)]
    torch.testing.assert_close(torch.stack(shares), torch.full((4,), 0.25), rtol=0, atol=1e-3)
