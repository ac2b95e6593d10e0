"""Laws of continuous-time consistency: its optimum is the flow's end, warm-up 0 is flow matching, costs are as told."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType, RegressionDenoiser
from fewstep.objectives.consistency import ConsistencyDistillation, ConsistencyTraining, ContinuousConsistency
from fewstep.objectives.derivative import Derivative, FiniteDifference, ForwardMode
from fewstep.objectives.few_step import Draw
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.readouts import LinearReadout
from fewstep.schedules import UniformTime
from fewstep.types import Latents, TokenBatch
from tests.nn.builders import first, normal, randomised, seeded
from tests.objectives.ends import (
    D,
    Exact,
    K,
    PassCounter,
    Small,
    ThisTime,
    V,
    both_predictions,
    each_path,
    errors_in_training,
    gaussian_latents,
    gradient,
    loss_of,
    mean_gradients,
    seed,
    teacher_on,
)

both_kinds = pytest.mark.parametrize("kind", [ConsistencyTraining, ConsistencyDistillation])
Kind = type[ContinuousConsistency]


@each_path
def test_the_closed_form_end_is_where_the_exact_flow_goes(path: Path, generator: torch.Generator) -> None:
    network, x_0 = Exact(path, "x1", end=True), normal((16, K, D), generator)
    t = torch.rand(16, generator=generator)
    end = network.gaussian.flow(x_0, torch.ones(16))
    torch.testing.assert_close(network.endpoint(network.gaussian.flow(x_0, t), t), end, rtol=1e-9, atol=1e-9)


@each_path
@both_predictions
@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
def test_distillation_has_no_gradient_at_the_flows_exact_end(
    path: Path, prediction: PredictionType, normalise: bool, generator: torch.Generator
) -> None:
    model = FlowModel(Exact(path, prediction, end=True), path, prediction)
    objective = ConsistencyDistillation(UniformTime(), normalise_tangent=normalise)
    # A teacher of the other prediction says the same velocity.
    teacher = teacher_on(path, "velocity" if prediction == "x1" else "x1")
    at_end, _ = mean_gradients(objective, model, teacher, generator, batches=2)
    assert at_end.abs().max() < 1e-4, "not only on average: every single tangent is 0, up to the time's float32"
    with torch.no_grad():
        model.network.gain += 0.05
    moved, _ = mean_gradients(objective, model, teacher, generator, batches=2)
    assert moved.abs().max() > 1e-2


@each_path
@both_predictions
@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
def test_training_has_no_expected_gradient_at_the_flows_exact_end(
    path: Path, prediction: PredictionType, normalise: bool, generator: torch.Generator
) -> None:
    model = FlowModel(Exact(path, prediction, end=True), path, prediction)
    objective = ConsistencyTraining(UniformTime(), normalise_tangent=normalise)
    at_end, error = mean_gradients(objective, model, None, generator)
    assert (at_end.abs() < 5 * error).all()
    with torch.no_grad():
        model.network.gain += 0.2
        model.network.shift -= 0.2
    moved, _ = mean_gradients(objective, model, None, generator)
    assert (moved.abs() > 5 * error).any()
    # And the posterior mean, which is flow matching's optimum, is not this one's.
    mean, error = mean_gradients(objective, teacher_on(path, prediction), None, generator)
    assert (mean.abs() > 5 * error).any()


@both_predictions
@pytest.mark.parametrize(
    "path", [linear_path(), pytest.param(variance_preserving_path(), marks=pytest.mark.slow)], ids=["linear", "vp"]
)
@both_kinds
def test_a_small_network_learns_the_exact_transport(
    kind: Kind, path: Path, prediction: PredictionType, generator: torch.Generator
) -> None:
    model = FlowModel(seeded(Small), path, prediction)
    teacher = teacher_on(path) if kind.needs_teacher else None
    start, third, end = errors_in_training(kind(UniformTime()), model, teacher, generator, 400)
    # The posterior mean at t = 0 is the data's mean: as a jump it is wrong by their variance, 0.9.
    assert start > third > end and end < 0.06, (start, third, end)


def test_an_estimate_of_x1_is_anchored_at_the_data_and_lost_without(generator: torch.Generator) -> None:
    path, latents = linear_path(), gaussian_latents(8, generator)
    draw = Draw(latents.z, normal((8, K, D), generator), latents.mask, generator, 1.0)
    objective, model = ConsistencyTraining(UniformTime(), boundary_share=0.25), FlowModel(seeded(Small), path, "x1")
    (part,) = objective.regressions(model, draw, None)
    assert (part.t[:2] == 1).all() and (part.t[2:] < 1).all()
    assert torch.equal(part.x_t[:2], draw.x_1[:2])
    torch.testing.assert_close(part.target[:2], draw.x_1[:2])
    free = ConsistencyDistillation(UniformTime(), boundary_share=0.0)
    errors = errors_in_training(free, model, teacher_on(path), generator, 120)
    assert errors[-1] > 10 or errors[-1] != errors[-1], "the anchor is not for nothing"


@each_path
@both_predictions
def test_warm_up_0_is_flow_matching_and_normalising_keeps_each_examples_direction(
    path: Path, prediction: PredictionType, generator: torch.Generator
) -> None:
    times = ThisTime(torch.tensor([0.37]))
    model, latents = FlowModel(seeded(Small), path, prediction), gaussian_latents(1, generator)
    matching = gradient(loss_of(FlowMatching(times), model, latents, seed(3)).loss, model)

    def at(progress: float, normalise: bool) -> Tensor:
        objective = ConsistencyTraining(times, warmup_share=0.5, normalise_tangent=normalise, boundary_share=0.0)
        loss = loss_of(objective, model, latents, seed(3), progress=progress).loss
        return gradient(loss, model)

    # An estimate of x_1 is matched in the velocity's scale: the same gradient, weighed over time.
    alpha, sigma = (weight.item() for weight in path.alpha_sigma(times.t, torch.zeros(1)))
    d_alpha, d_sigma = (weight.item() for weight in path.d_alpha_sigma(times.t, torch.zeros(1)))
    scale = 1.0 if prediction == "velocity" else (d_alpha * sigma - alpha * d_sigma) / sigma
    torch.testing.assert_close(at(0.0, False), scale * matching, rtol=1e-5, atol=1e-6)
    for progress in (0.0, 0.25, 1.0):
        assert torch.cosine_similarity(at(progress, False), at(progress, True), dim=0) > 1 - 1e-9
    # In between it is the mixture of both ends, and from the share on the pure tangent.
    torch.testing.assert_close(at(0.2, False), 0.6 * at(0.0, False) + 0.4 * at(0.5, False), rtol=1e-5, atol=1e-7)
    assert torch.equal(at(0.5, False), at(1.0, False)) and not torch.allclose(at(0.5, False), scale * matching)


@both_predictions
def test_the_pure_tangent_is_the_derivative_of_the_jump_to_the_end(
    prediction: PredictionType, generator: torch.Generator
) -> None:
    """g is what the target has beyond the prediction."""
    path, model = variance_preserving_path(), FlowModel(seeded(Small), variance_preserving_path(), prediction)
    latents, t = gaussian_latents(3, generator), torch.tensor([0.2, 0.5, 0.9])
    draw = Draw(latents.z, normal((3, K, D), generator), latents.mask, generator, 1.0)
    objective = ConsistencyTraining(ThisTime(t), normalise_tangent=False, boundary_share=0.0)
    (part,) = objective.regressions(model, draw, None)
    h = 1e-3

    def end(time: Tensor) -> Tensor:  # along the conditional trajectory's straight continuation
        x = part.x_t + (time - t)[:, None, None] * path.velocity(draw.x_1, draw.x_0, t)
        return model.denoise(x, time, mask=latents.mask)

    change = (end(t + h) - end(t - h)) / (2 * h)
    torch.testing.assert_close(part.target - part.prediction, change, rtol=2e-3, atol=2e-3)
    assert not part.target.requires_grad and part.prediction.requires_grad


@both_kinds
@both_predictions
def test_a_normalised_tangent_is_below_1_in_root_mean_square_whatever_stands_at_padding(
    kind: Kind, prediction: PredictionType, generator: torch.Generator
) -> None:
    path, mask = linear_path(), first([2, 1, 2], K)
    model, teacher = FlowModel(seeded(Small), path, prediction), teacher_on(path)
    z, settings = normal((3, K, D), generator) * mask[..., None], {"boundary_share": 0.0}
    outputs = []
    for latents in (Latents(z, mask), Latents(torch.where(mask[..., None], z, 100.0), mask)):
        outputs.append(loss_of(kind(UniformTime(), **settings), model, latents, seed(2), teacher))
    torch.testing.assert_close(outputs[1].per_example, outputs[0].per_example, rtol=0, atol=1e-9)
    big = loss_of(kind(UniformTime(), tangent_floor=1e-6, **settings), model, latents, generator, teacher).per_example
    assert (outputs[0].per_example < 1).all() and torch.allclose(big, torch.ones_like(big), atol=1e-3)


@both_kinds
def test_the_teacher_never_moves_and_gets_no_gradient(kind: Kind, generator: torch.Generator) -> None:
    path = linear_path()
    model = FlowModel(seeded(Small), path, "x1")
    teacher = FlowModel(seeded(Small, 1), path, "velocity")
    before = [weight.clone() for weight in teacher.parameters()]
    optimiser = torch.optim.Adam([*model.parameters(), *teacher.parameters()])
    for _ in range(3):
        optimiser.zero_grad()
        loss_of(kind(UniformTime()), model, gaussian_latents(8, generator), generator, teacher, 0.05).loss.backward()
        optimiser.step()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


@both_kinds
@both_predictions
@pytest.mark.parametrize("derivative", [ForwardMode(), FiniteDifference()], ids=["forward", "difference"])
@pytest.mark.parametrize("cross_entropy_weight", [0.0, 0.1])
def test_the_passes_are_those_that_a_network_counts(
    kind: Kind,
    prediction: PredictionType,
    derivative: Derivative,
    cross_entropy_weight: float,
    generator: torch.Generator,
) -> None:
    path, latents = linear_path(), gaussian_latents(4, generator)
    counted, taught = PassCounter(seeded(Small)), PassCounter(seeded(Small, 1))
    objective = kind(UniformTime(), derivative=derivative, cross_entropy_weight=cross_entropy_weight)
    loss = objective.forward(
        FlowModel(counted, path, prediction),
        latents,
        tokens=TokenBatch(torch.zeros(4, K).long(), latents.mask),
        readout=randomised(lambda: LinearReadout(V, D)),
        generator=generator,
        teacher=FlowModel(taught, path, "x1"),
    ).loss
    loss.backward()
    assert counted.passes + taught.passes == objective.passes_per_step


@both_predictions
def test_forward_mode_and_finite_differences_agree(prediction: PredictionType, generator: torch.Generator) -> None:
    model, latents = FlowModel(seeded(Small), linear_path(), prediction), gaussian_latents(8, generator)
    losses = []
    for derivative in (ForwardMode(), FiniteDifference()):
        objective = ConsistencyTraining(UniformTime(), derivative=derivative)
        losses.append(loss_of(objective, model, latents, seed(5)).per_example)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-3)


@each_path
@both_kinds
@both_predictions
def test_loss_and_gradient_are_finite_under_bf16(
    kind: Kind, path: Path, prediction: PredictionType, generator: torch.Generator
) -> None:
    def build() -> RegressionDenoiser:
        return RegressionDenoiser(D, K, width=8, depth=1, num_heads=2)

    model, teacher = (FlowModel(randomised(build, seed, 0.1).float(), path, prediction) for seed in (0, 1))
    latents = Latents(normal((16, K, D), generator).float(), torch.ones(16, K).bool())
    for progress in (0.0, 0.05, 1.0):
        with torch.autocast("cpu", torch.bfloat16):
            output = loss_of(kind(UniformTime()), model, latents, generator, teacher, progress)
        found = gradient(output.loss, model)
        assert output.loss.isfinite() and found.isfinite().all() and output.loss.dtype == torch.float32


@both_kinds
def test_what_does_not_fit_is_refused(kind: Kind, generator: torch.Generator) -> None:
    for settings in ({"warmup_share": -0.1}, {"warmup_share": 2.0}, {"tangent_floor": 0.0}, {"boundary_share": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            kind(UniformTime(), **settings)
    two = FlowModel(RegressionDenoiser(D, K, width=8, depth=1, num_heads=2, two_times=True), linear_path(), "x1")
    with pytest.raises(ValueError, match="two_times=False"):
        loss_of(kind(UniformTime()), two, gaussian_latents(2, generator), generator, teacher_on(linear_path()))
    if kind.needs_teacher:
        one = FlowModel(seeded(Small), linear_path(), "x1")
        with pytest.raises(ValueError, match="teacher"):
            loss_of(kind(UniformTime()), one, gaussian_latents(2, generator), generator)


def test_the_warm_up_is_linear_and_its_share_may_be_none() -> None:
    objective = ConsistencyTraining(UniformTime(), warmup_share=0.2)
    assert [objective.warmup(progress) for progress in (0.0, 0.1, 0.2, 1.0)] == [0.0, 0.5, 1.0, 1.0]
    assert ConsistencyTraining(UniformTime(), warmup_share=0.0).warmup(0.0) == 1.0
