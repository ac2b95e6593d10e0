"""Laws of easy consistency tuning: the schedule of its target's time, its optimum, its cost."""

from itertools import pairwise

import pytest
import torch

from fewstep.denoisers import FlowModel, PredictionType, RegressionDenoiser
from fewstep.objectives.easy_consistency import EasyConsistency
from fewstep.objectives.few_step import Draw
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.paths import Path, linear_path
from fewstep.readouts import LinearReadout
from fewstep.schedules import UniformTime
from fewstep.types import Latents, TokenBatch
from tests.nn.builders import first, normal, randomised, seeded
from tests.objectives.ends import (
    Exact,
    PassCounter,
    Small,
    ThisTime,
    both_predictions,
    each_path,
    errors_in_training,
    gaussian_latents,
    gradient,
    loss_of,
    mean_gradients,
    seed,
)

V, D, K = 5, 2, 2


@both_predictions
def test_the_gap_starts_at_the_data_and_is_divided_by_the_factor_in_each_stage(prediction: PredictionType) -> None:
    objective = EasyConsistency(UniformTime(), num_stages=5, factor=3.0)
    t = torch.rand(100, generator=seed(0), dtype=torch.float64)
    gaps = []
    for stage in range(5):
        r = objective.target_time(t, (stage + 0.5) / 5, prediction)
        assert objective.stage((stage + 0.5) / 5) == stage and (r > t).all() and (r <= 1).all()
        gaps.append(r - t)
    assert torch.equal(gaps[0] + t, torch.ones_like(t))
    inside = t < 0.6  # where no gap after the first passes the data
    for before, after in pairwise(gaps[1:]):
        torch.testing.assert_close(before[inside] / 3, after[inside])
    if prediction == "velocity":
        torch.testing.assert_close(gaps[1], (1 - t) / 3)
    assert torch.equal(objective.target_time(t, 1.0, prediction), gaps[-1] + t), "the last stage lasts to the end"


@both_predictions
def test_the_targets_time_lies_beyond_t_in_float32_too(prediction: PredictionType) -> None:
    t = torch.cat([1 - 2.0 ** -torch.arange(1, 25), 2.0 ** -torch.arange(1, 25)])
    r = EasyConsistency(UniformTime(), num_stages=12).target_time(t, 1.0, prediction)
    assert (r > t).all() and (r <= 1).all()


@each_path
@both_predictions
def test_the_first_stage_is_flow_matching(path: Path, prediction: PredictionType, generator: torch.Generator) -> None:
    times = ThisTime(torch.tensor([0.1, 0.4, 0.6, 0.9]))
    model, latents = FlowModel(seeded(Small), path, prediction), gaussian_latents(4, generator)
    gradients = [
        gradient(loss_of(objective, model, latents, seed(3), progress=0.1).loss, model)
        for objective in (EasyConsistency(times), FlowMatching(times))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@both_predictions
def test_the_target_is_the_own_estimate_on_the_same_pair_and_x1_at_the_end(
    prediction: PredictionType, generator: torch.Generator
) -> None:
    path, model, latents = (
        linear_path(),
        FlowModel(seeded(Small), linear_path(), prediction),
        gaussian_latents(4, seed(1)),
    )
    draw = Draw(latents.z, normal((4, K, D), generator), latents.mask, generator, 0.3)
    objective = EasyConsistency(ThisTime(torch.tensor([0.1, 0.2, 0.3, 0.9])), num_stages=8, boundary_share=0.25)
    (part,) = objective.regressions(model, draw, None)
    r = objective.target_time(part.t, 0.3, prediction)
    aim = model.denoise(path.sample(draw.x_1, draw.x_0, r), r)
    if prediction == "x1":
        aim = torch.where((r == 1)[:, None, None], draw.x_1, aim)
        assert r.tolist() == pytest.approx([1, 0.45, 0.55, 1]) and part.t[0] == 1
    else:
        aim = path.velocity_from_x1(part.x_t, aim, part.t)
        assert part.t[0] == torch.tensor(0.1)
    torch.testing.assert_close(part.target, aim, rtol=1e-6, atol=1e-6)
    assert not part.target.requires_grad and part.prediction.requires_grad


@each_path
@both_predictions
def test_the_gradient_at_the_flows_exact_end_falls_with_the_square_of_the_gap(
    path: Path, prediction: PredictionType
) -> None:
    """To first order in the gap it vanishes: the bias of a pair's step is that of one Euler step."""
    model = FlowModel(Exact(path, prediction, end=True), path, prediction)
    found = []
    for stage in (2, 3, 4, 5):
        objective = EasyConsistency(UniformTime(), num_stages=8)
        mean, error = mean_gradients(objective, model, None, seed(0), progress=(stage + 0.5) / 8, batches=64)
        found.append((mean[0].abs(), error[0]))
    assert all(mean > 5 * error for mean, error in found[:2])
    ratios = [(a[0] / b[0]).item() for a, b in pairwise(found[:3])]
    assert all(2.5 < ratio < 6 for ratio in ratios), ratios


@each_path
@both_predictions
def test_a_small_network_learns_the_exact_transport(
    path: Path, prediction: PredictionType, generator: torch.Generator
) -> None:
    model = FlowModel(seeded(Small), path, prediction)
    start, third, end = errors_in_training(EasyConsistency(UniformTime()), model, None, generator, 400)
    assert start > 3 * third and end < 0.15, (start, third, end)


@both_predictions
@pytest.mark.parametrize("cross_entropy_weight", [0.0, 0.1])
def test_the_passes_are_those_that_a_network_counts(
    prediction: PredictionType, cross_entropy_weight: float, generator: torch.Generator
) -> None:
    latents, passes = gaussian_latents(4, generator), []
    objective = EasyConsistency(UniformTime(), num_stages=4, cross_entropy_weight=cross_entropy_weight)
    for stage in range(4):
        network = PassCounter(seeded(Small))
        tokens = TokenBatch(torch.zeros(4, K).long(), latents.mask)
        objective.forward(
            FlowModel(network, linear_path(), prediction),
            latents,
            tokens=tokens,
            readout=randomised(lambda: LinearReadout(V, D)),
            generator=generator,
            progress=stage / 4,
        ).loss.backward()
        passes.append(network.passes)
    assert sum(passes) / 4 == objective.passes_per_step


@both_predictions
def test_what_stands_at_padding_never_contributes(prediction: PredictionType, generator: torch.Generator) -> None:
    mask = first([2, 1, 2], K)
    z = normal((3, K, D), generator) * mask[..., None]
    model = FlowModel(seeded(Small), linear_path(), prediction)
    one, two = (
        loss_of(EasyConsistency(UniformTime()), model, latents, seed(2)).per_example
        for latents in (Latents(z, mask), Latents(torch.where(mask[..., None], z, 100.0), mask))
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@each_path
@both_predictions
def test_loss_and_gradient_are_finite_under_bf16(
    path: Path, prediction: PredictionType, generator: torch.Generator
) -> None:
    network = randomised(lambda: RegressionDenoiser(D, K, width=8, depth=1, num_heads=2), std=0.1).float()
    model = FlowModel(network, path, prediction)
    latents = Latents(normal((16, K, D), generator).float(), torch.ones(16, K).bool())
    objective = EasyConsistency(UniformTime(), weight=AdaptiveWeight(0.5))
    for progress in (0.0, 0.5, 1.0):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(objective, model, latents, generator, progress=progress).loss
        assert loss.isfinite() and gradient(loss, model).isfinite().all() and loss.dtype == torch.float32


def test_what_does_not_fit_is_refused(generator: torch.Generator) -> None:
    for settings in ({"num_stages": 0}, {"factor": 1.0}, {"boundary_share": -0.1}):
        with pytest.raises(ValueError, match="expected"):
            EasyConsistency(UniformTime(), **settings)
    two = FlowModel(RegressionDenoiser(D, K, width=8, depth=1, num_heads=2, two_times=True), linear_path(), "x1")
    with pytest.raises(ValueError, match="two_times=False"):
        loss_of(EasyConsistency(UniformTime()), two, gaussian_latents(2, generator), generator)
