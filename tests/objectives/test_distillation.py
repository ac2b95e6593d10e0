"""Laws of progressive distillation and reflow: their targets are where the sampler takes the teacher, on its grid."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import ProgressiveDistillation, Reflow
from fewstep.objectives.base import Batch
from fewstep.paths import Path
from fewstep.samplers import FlowSampler
from fewstep.schedules import LogitNormalTime, TimeSampler, UniformTime, grid_of
from tests.nn.builders import normal
from tests.objectives.toys import D, K, Small, both_predictions, data, each_path, exact_flow, seed

each_sampler = pytest.mark.parametrize(
    "sampler", [UniformTime(), LogitNormalTime(0.3, 1.2)], ids=["uniform", "logit_normal"]
)


def batch_of(count: int, lengths: list[int] | None = None) -> Batch:
    latents = data(count, seed(0), lengths)
    return Batch(latents.z, normal((count, K, D), seed(1)) * latents.mask[..., None], latents.mask, seed(2))


def states(
    model: FlowModel, x_t: Tensor, sampler: TimeSampler, steps: int, start: int = 0, solver: str = "euler"
) -> tuple:
    """The sampler's own states from step ``start`` on."""
    loop = FlowSampler(model.path, solver=solver, grid=grid_of(sampler))
    with torch.no_grad():
        return loop.sample(model, x_t, num_steps=steps, start_step=start, generator=seed(0)).states


@each_path
@both_predictions
@each_sampler
@pytest.mark.parametrize(("num_steps", "teacher_steps"), [(1, 2), (3, 2), (2, 4)])
def test_a_step_along_the_target_of_progressive_distillation_is_m_steps_of_the_teacher(
    path: Path, prediction: PredictionType, sampler: TimeSampler, num_steps: int, teacher_steps: int
) -> None:
    teacher, batch = exact_flow(path, prediction), batch_of(6)
    objective = ProgressiveDistillation(sampler, num_steps=num_steps, teacher_steps=teacher_steps)
    assert objective.trained_nfe == num_steps and objective.teacher_nfe == num_steps * teacher_steps
    (part,) = objective.regressions(FlowModel(Small().double(), path, prediction), batch, teacher)
    times = objective.times(batch._replace(generator=seed(2)))
    grid = grid_of(sampler).times(num_steps * teacher_steps).tolist()
    for row, (t, s) in enumerate(zip(times[0], times[-1], strict=True)):
        x_t = path.sample(batch.x_1[row : row + 1], batch.x_0[row : row + 1], t[None])
        ends = states(teacher, x_t, sampler, num_steps * teacher_steps, grid.index(float(t)))
        target = part.target[row : row + 1]
        x1_hat = target if prediction == "x1" else path.x1_from_velocity(x_t, target, t[None])
        along = path.sample(x1_hat, path.eps_from_x1(x_t, x1_hat, t[None]), s[None])
        torch.testing.assert_close(along, ends[teacher_steps], rtol=0, atol=1e-11)


@each_sampler
def test_a_batch_starts_at_each_step_of_the_samplers_grid_equally_often(sampler: TimeSampler) -> None:
    times = ProgressiveDistillation(sampler, num_steps=5).times(batch_of(20))
    starts, counts = times[0].unique(return_counts=True)
    assert torch.equal(starts, grid_of(sampler).times(5)[:-1]) and counts.tolist() == [4] * 5
    assert all((t < s).all() for t, s in pairwise(times))
    assert len(times[0].diff().sign().unique()) > 1, "no entry of a batch is tied to a step"


@each_path
@each_sampler
def test_a_pair_of_reflow_is_noise_and_the_teachers_end_at_several_times(path: Path, sampler: TimeSampler) -> None:
    teacher, batch = exact_flow(path), batch_of(7, [3, 1, 2, 3, 3, 3, 3])
    (part,) = Reflow(sampler, num_steps=4, times_per_pair=3).regressions(exact_flow(path), batch, teacher)
    exact = states(teacher, batch.x_0[:3], sampler, 4, solver="heun")[-1] * batch.mask[:3, :, None]
    pair = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    torch.testing.assert_close(part.target, exact[pair], rtol=0, atol=1e-12)
    assert torch.equal(part.mask, batch.mask[pair])
    assert len(part.prediction[pair == 0].unique(dim=0)) == 3, "a pair is seen at several times"
