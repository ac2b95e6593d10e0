"""Laws of continuous-time consistency: the tangent, its warm-up, its size, and the anchor of an x_1 estimate."""

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import ConsistencyTraining, FlowMatching, Regression
from fewstep.objectives.base import Batch
from fewstep.paths import Path, linear_path, variance_preserving_path
from tests.nn.builders import normal
from tests.objectives.toys import FixedTimes, K, Small, both_predictions, data, each_path, gradient, loss_of, seed


def small(path: Path, prediction: PredictionType) -> FlowModel:
    return FlowModel(Small().double(), path, prediction)


def batch_of(count: int, progress: float = 1.0) -> Batch:
    latents = data(count, seed(0))
    return Batch(latents.z, normal((count, K, 2), seed(1)), latents.mask, seed(2), progress)


def test_a_share_of_a_batch_anchors_an_estimate_of_x1_at_the_data() -> None:
    model, batch = small(linear_path(), "x1"), batch_of(8)
    (part,) = ConsistencyTraining(FixedTimes()).regressions(model, batch, None)
    torch.testing.assert_close(part.target[:2], batch.x_1[:2])
    torch.testing.assert_close(part.prediction[:2], model.denoise(batch.x_1[:2], torch.ones(2)), msg="x_t is x_1")


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
    assert torch.equal(direction(0.5), direction(1.0)) and not torch.equal(direction(0.49), direction(1.0))
    assert torch.cosine_similarity(direction(1.0), matching, dim=0) < 0.999


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
