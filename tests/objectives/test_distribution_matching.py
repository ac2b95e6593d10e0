"""Distribution matching: no gradient where the student's law is the data's, and samples that get there in a step."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives import DistributionMatching, Generated
from fewstep.paths import Path
from fewstep.schedules import UniformTime, grid_of
from tests.objectives.toys import COVARIANCE, MEAN, D, Network, both_predictions, data, each_path, exact_flow, seed
from tests.toys import GaussianModel

SHIFT = torch.tensor([0.3, -0.2], dtype=torch.float64)


class Posterior(Network):
    """A network of two times that knows the mean of ``shift`` + data given x_t, at every T."""

    def __init__(self, path: Path, shift: Tensor, prediction: str) -> None:
        super().__init__(two_times=True)
        self.exact, self.prediction = GaussianModel(path, MEAN + shift, COVARIANCE), prediction

    def answer(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x1_hat = self.exact.denoise(x_t, t)
        return x1_hat if self.prediction == "x1" else self.exact.velocity_of(x_t, x1_hat, t)


def shifted(count: int, shift: Tensor, generator: torch.Generator) -> Generated:
    """Samples of a student whose law is the data's moved by ``shift``."""
    latents = data(count, generator)
    return Generated((latents.z + shift).requires_grad_(), torch.rand(count, generator=generator), latents.mask)


@each_path
@both_predictions
def test_the_gradient_is_zero_where_the_laws_agree_and_leads_back_from_a_shift(path: Path, prediction: str) -> None:
    objective, teacher = DistributionMatching(UniformTime()), exact_flow(path)
    for shift, expected in ((0 * SHIFT, torch.zeros(D)), (SHIFT, SHIFT.sign())):
        auxiliary = FlowModel(Posterior(path, shift, prediction), path, prediction)
        generated = shifted(4_000, shift, seed(0))
        loss = objective.student_loss(generated, auxiliary, teacher, seed(1)).loss
        (slope,) = torch.autograd.grad(loss, generated.x_1)
        total = slope.sum((0, 1))
        assert torch.equal(total.abs() > 1e-9, expected != 0), total
        assert torch.equal(total.sign() * (expected != 0), expected), "descent takes the shift back"


@each_path
@both_predictions
def test_the_auxiliary_network_s_optimum_is_the_mean_of_the_student_s_samples(path: Path, prediction: str) -> None:
    objective, network = DistributionMatching(UniformTime()), Posterior(path, SHIFT, prediction)
    auxiliary, batches = FlowModel(network, path, prediction), 40

    def slopes() -> Tensor:
        generator, rows = seed(0), []
        for _ in range(batches):
            loss = objective.auxiliary_loss(shifted(256, SHIFT, generator), auxiliary, generator)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]))
        return torch.stack(rows)

    at_optimum = slopes()
    bound = 5 * at_optimum.std(0) / batches**0.5
    assert (at_optimum.mean(0).abs() < bound).all()
    with torch.no_grad():
        network.shift -= 0.2
    assert (slopes().mean(0).abs() > bound).any()


def test_starts_are_a_share_of_pure_noise_or_the_steps_of_a_grid() -> None:
    start = DistributionMatching(UniformTime(), initial_share=0.25).starts(400, seed(0))
    assert (start == 0).sum() == 100 and start[start > 0].min() > 0 and start.max() < 1
    assert start[start > 0].mean() == pytest.approx(0.5, abs=0.01)
    fixed = DistributionMatching(UniformTime(), num_steps=4)
    times, counts = fixed.starts(400, seed(0)).unique(return_counts=True)
    assert torch.equal(times, grid_of(UniformTime()).times(4)[:-1]) and counts.tolist() == [100] * 4
