"""Laws that every self-distilled flow map obeys, for the tests of each to call."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType, RegressionDenoiser
from fewstep.objectives import FewStepObjective
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.readouts import LinearReadout
from fewstep.types import Latents, TokenBatch
from tests.nn.builders import first, normal, randomised
from tests.objectives.maps import D, ExactMap, data, loss_of, seed

each_path = pytest.mark.parametrize(
    "path", [linear_path(), variance_preserving_path()], ids=["linear", "variance_preserving"]
)
both_predictions = pytest.mark.parametrize("prediction", ["x1", "velocity"])


def check_loss_is_zero_at_the_exact_map(
    objective: FewStepObjective, path: Path, prediction: PredictionType, tolerance: float = 1e-20
) -> None:
    """``objective`` must train no pairs with s = t. Exact in float64; a tenth away the loss is 1e-5 at least."""
    network, latents = ExactMap(path, prediction), data(64, 2, seed(0))
    model = FlowModel(network, path, prediction)
    output = loss_of(objective, model, latents, seed(1))
    assert output.per_example.max() < tolerance
    gradients = torch.autograd.grad(output.loss, [network.gain, network.shift])
    assert max(float(g.abs().max()) for g in gradients) < 1e-9
    with torch.no_grad():
        network.gain += 0.1
    assert loss_of(objective, model, latents, seed(1)).loss > 1e-5


def check_mean_gradient_vanishes_at_the_exact_map(
    objective: FewStepObjective, path: Path, prediction: PredictionType
) -> None:
    """Within five standard errors, where a tenth away is outside."""
    network, generator = ExactMap(path, prediction), seed(0)
    model = FlowModel(network, path, prediction)

    def gradients() -> Tensor:
        rows = []
        for _ in range(48):
            loss = loss_of(objective, model, data(256, 2, generator), generator).loss
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [network.gain, network.shift])]))
        return torch.stack(rows)

    at_optimum = gradients()
    standard_error = at_optimum.std(0) / len(at_optimum) ** 0.5
    assert (at_optimum.mean(0).abs() < 5 * standard_error).all()
    with torch.no_grad():
        network.gain += 0.1
        network.shift -= 0.1
    assert (gradients().mean(0).abs() > 5 * standard_error).all()


def check_padding_never_contributes(
    objective: FewStepObjective, path: Path, prediction: PredictionType, tolerance: float = 1e-9
) -> None:
    """``objective`` should have both terms through the readout: all of it is then looked at."""
    network = randomised(
        lambda: RegressionDenoiser(D, 4, width=8, depth=1, num_heads=2, two_times=True, max_frequency=4.0), std=0.1
    )
    model, readout = FlowModel(network, path, prediction), randomised(lambda: LinearReadout(5, D))
    mask = first([4, 2, 3, 1], 4)
    latents = Latents(normal((4, 4, D), seed(2)) * mask[..., None], mask)
    junk = Latents(torch.where(mask[..., None], latents.z, 100.0), mask)
    ids = torch.randint(5, (4, 4), generator=seed(3))
    one, two = (
        objective.forward(model, z, tokens=TokenBatch(i, mask), readout=readout, generator=seed(4))
        for z, i in ((latents, ids), (junk, torch.where(mask, ids, (ids + 1) % 5)))
    )
    assert set(one.terms) == {"squared_error", "fisher", "cross_entropy"}
    assert one.loss.isfinite() and one.loss.requires_grad
    torch.testing.assert_close(two.per_example, one.per_example, rtol=0, atol=tolerance)


def check_boundary_holds(prediction: PredictionType, path: Path) -> None:
    """X(t, t) is the identity, whatever the network says."""
    network = ExactMap(path, prediction)
    with torch.no_grad():
        network.gain += 0.3
    x_t, t = normal((5, 2, D), seed(0)), torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])
    assert torch.equal(FlowModel(network, path, prediction).jump(x_t, t, t), x_t)


def check_one_time_is_refused(objective: FewStepObjective) -> None:
    network = RegressionDenoiser(D, 2, width=8, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="two_times=True"):
        loss_of(objective, FlowModel(network, linear_path(), "x1"), data(4, 2, seed(0), torch.float32), seed(1))
