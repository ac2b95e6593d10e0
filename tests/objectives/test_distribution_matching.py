"""Distribution matching: no gradient where the student's law is the data's, and samples that get there in a step."""

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from fewstep.denoisers import FlowModel
from fewstep.objectives import DistributionMatching, Generated
from fewstep.paths import Path, linear_path
from fewstep.samplers import FlowSampler
from fewstep.schedules import UniformTime, grid_of
from fewstep.types import Latents
from tests.nn.builders import normal
from tests.objectives.toys import (
    COVARIANCE,
    MEAN,
    Answering,
    D,
    Network,
    both_predictions,
    data,
    each_path,
    exact_flow,
    seed,
)
from tests.toys import ExactModel, GaussianModel, ToyNetwork

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


class TwoBumps(ExactModel):
    """Posterior mean of an even mixture of N(-1, 0.4^2) and N(1, 0.4^2), each position by itself."""

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        variance = alpha**2 * 0.16 + sigma**2
        weight = torch.sigmoid(2 * alpha * x_t / variance)
        means = [sign + alpha * 0.16 / variance * (x_t - alpha * sign) for sign in (-1, 1)]
        return (1 - weight) * means[0] + weight * means[1]


class Table(ToyNetwork):
    """A student of the two steps from T = 0 and 0.5: at each a broken line over x_t, at first the posterior mean."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        knots, teacher = torch.linspace(-3, 3, 33).view(1, -1, 1), TwoBumps(path)
        self.lines = nn.Parameter(torch.cat([teacher.denoise(knots, torch.tensor([start])) for start in (0.0, 0.5)]))

    def value(self, x_t: Tensor, t: Tensor, *others: object) -> Tensor:  # type: ignore[override]
        place = (x_t.clamp(-2.999, 2.999) + 3) / 6 * 32
        lines, left = self.lines[(t > 0.25).long()], place.long()
        return torch.lerp(lines.gather(1, left), lines.gather(1, left + 1), place - left)


class OfSamples(ToyNetwork):
    """What the auxiliary network converges to: the mean, given x_t, of ``samples`` by their T, each (N,)."""

    def __init__(self) -> None:
        super().__init__(two_times=True)
        self.samples: dict[float, Tensor] = {}

    def value(self, x_t: Tensor, t: Tensor, s: Tensor | None, *others: object) -> Tensor:  # type: ignore[override]
        points = torch.stack([self.samples[start] for start in s.tolist()])[:, None]
        time = t[:, None, None]
        weights = (-((x_t - time * points) ** 2) / (2 * (1 - time) ** 2)).softmax(-1)
        return (weights * points).sum(-1, keepdim=True)


def bumps(count: int, generator: torch.Generator) -> Latents:
    """Data (count, 16, 1)."""
    sign = 2.0 * torch.randint(2, (count, 16, 1), generator=generator) - 1
    return Latents(sign + 0.4 * normal((count, 16, 1), generator).float(), torch.ones(count, 16, dtype=torch.bool))


@torch.no_grad()
def distance_to_data(model: FlowModel, num_steps: int) -> float:
    """Wasserstein-1 distance of 4,000 samples at gamma 1 to as many of the data; about 0.03 for data itself."""
    x_0 = normal((250, 16, 1), seed(3)).float()
    sampler = FlowSampler(model.path, reinjection=1.0)
    x_1 = sampler.sample(model, x_0, num_steps=num_steps, generator=seed(4)).x_1
    return float(wasserstein_distance(x_1.flatten(), bumps(250, seed(5)).z.flatten()))


def test_samples_reach_the_data_s_law_in_one_and_two_steps_where_jumps_to_the_mean_do_not() -> None:
    path, generator, steps = linear_path(), seed(1), 200
    teacher = FlowModel(Answering(TwoBumps(path), "x1", latent_dim=1).float(), path, "x1")
    student, auxiliary = (FlowModel(network, path, "x1") for network in (Table(path), OfSamples()))
    objective = DistributionMatching(UniformTime(), num_steps=2)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    to_the_mean = [distance_to_data(student, count) for count in (1, 2)]
    for _ in range(steps):
        with torch.no_grad():
            generated = objective.generate(student, bumps(32, generator), generator)
        for start in (0.0, 0.5):
            auxiliary.network.samples[start] = generated.x_1[generated.start == start].flatten()
        generated = objective.generate(student, bumps(32, generator), generator)
        loss = objective.student_loss(generated, auxiliary, teacher, generator).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    matched = [distance_to_data(student, count) for count in (1, 2)]
    assert min(to_the_mean) > 0.4 and max(matched) < 0.15, (to_the_mean, matched)
