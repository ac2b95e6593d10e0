"""Laws of continuous-time consistency: the tangent, its warm-up, its size, and the anchor of an x_1 estimate."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import ConsistencyDistillation, ConsistencyTraining, FlowMatching, Regression
from fewstep.objectives import consistency as module
from fewstep.objectives.base import Batch
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.schedules import UniformTime
from tests.nn.builders import normal
from tests.objectives.toys import (
    FixedTimes,
    K,
    Small,
    both_predictions,
    data,
    each_path,
    exact_flow,
    gradient,
    loss_of,
    one_step_error,
    seed,
    trained,
)

both_kinds = pytest.mark.parametrize("kind", [ConsistencyTraining, ConsistencyDistillation])
Kind = type[ConsistencyTraining] | type[ConsistencyDistillation]


def small(path: Path, prediction: PredictionType) -> FlowModel:
    return FlowModel(Small().double(), path, prediction)


def batch_of(count: int, progress: float = 1.0) -> Batch:
    latents = data(count, seed(0))
    return Batch(latents.z, normal((count, K, 2), seed(1)), latents.mask, seed(2), progress)


def test_an_estimate_of_x1_is_anchored_at_the_data_and_lost_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small(linear_path(), "x1"), batch_of(8)
    (part,) = ConsistencyTraining(FixedTimes()).regressions(model, batch, None)
    torch.testing.assert_close(part.target[:2], batch.x_1[:2])
    torch.testing.assert_close(part.prediction[:2], model.denoise(batch.x_1[:2], torch.ones(2)), msg="x_t is x_1")
    teacher, objective = exact_flow(linear_path(), "velocity"), ConsistencyDistillation(UniformTime())
    errors = []
    for share in (0.25, 0.0):
        monkeypatch.setattr(module, "BOUNDARY_SHARE", share)
        model = small(linear_path(), "x1")
        trained(objective, model, lambda g: data(128, g), steps=120, rate=1e-2, teacher=teacher)
        with torch.no_grad():
            errors.append(one_step_error(model))
    assert errors[0] < 0.5 and not errors[1] < 100, errors


@each_path
@both_predictions
def test_the_warm_up_goes_from_flow_matching_to_the_pure_tangent(path: Path, prediction: PredictionType) -> None:
    t = 0.37
    model, latents, times = small(path, prediction), data(1, seed(0)), FixedTimes([t])
    matching = gradient(loss_of(FlowMatching(times), model, latents, seed(3)).loss, model)

    def direction(progress: float) -> Tensor:
        loss = loss_of(ConsistencyTraining(times, warmup_share=0.5), model, latents, seed(3), progress=progress).loss
        return gradient(loss, model)

    assert torch.cosine_similarity(direction(0.0), matching, dim=0) > 1 - 1e-6
    assert torch.equal(direction(0.5), direction(1.0))
    assert torch.cosine_similarity(direction(1.0), matching, dim=0) < 0.999
    objective = ConsistencyTraining(times, warmup_share=0.2)
    assert [objective.warmup(progress) for progress in (0.0, 0.1, 0.2, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert ConsistencyTraining(times, warmup_share=0.0).warmup(0.0) == 1.0


def raw_tangent(part: Regression) -> Tensor:
    """The tangent before it is divided by its size plus 1, (B, K, D)."""
    divided = part.target - part.prediction.detach()
    size = divided.square().mean((1, 2), keepdim=True).sqrt()
    return divided / (1 - size)


@both_predictions
def test_the_pure_tangent_is_the_derivative_of_the_end(prediction: PredictionType) -> None:
    path, t = variance_preserving_path(), torch.tensor([0.2, 0.5, 0.9, 0.4])
    model, batch = small(path, prediction), batch_of(4)
    rest = slice(1, None)  # the first is anchored where x_1 is predicted
    (part,) = ConsistencyTraining(FixedTimes(t.tolist())).regressions(model, batch, None)
    x_t, h = path.sample(batch.x_1, batch.x_0, t), 1e-3

    def end(time: Tensor) -> Tensor:  # along the conditional trajectory's straight continuation
        x = x_t + (time - t)[:, None, None] * path.velocity(batch.x_1, batch.x_0, t)
        return model.denoise(x, time, mask=batch.mask)

    change = (end(t + h) - end(t - h)) / (2 * h)
    torch.testing.assert_close(raw_tangent(part)[rest], change[rest], rtol=2e-3, atol=2e-3)
    assert not part.target.requires_grad and part.prediction.requires_grad


@both_kinds
@both_predictions
def test_a_tangent_is_below_1_in_root_mean_square(kind: Kind, prediction: PredictionType) -> None:
    model = small(linear_path(), prediction)
    with torch.no_grad():
        model.network.straight.weight *= 1000
    teacher = exact_flow(linear_path(), "velocity")
    (part,) = kind(FixedTimes([0.2, 0.5, 0.9])).regressions(model, batch_of(3), teacher)
    sizes = (part.target - part.prediction).square().mean((1, 2))[1:]
    assert (sizes < 1).all() and (sizes > 0.9).all()
