"""What every objective of a denoiser promises: masks, costs, refusals, precision, seeds, teachers, and its optimum."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import ESTIMATES, EstimateKind, FlowModel, PredictionType, RegressionDenoiser
from fewstep.objectives import OBJECTIVES, Generated, HeadTraining, KnownPositions, Objective, Reconstruction
from fewstep.objectives.flow_maps import FlowMapObjective
from fewstep.paths import Path, linear_path
from fewstep.readouts import LinearReadout
from fewstep.schedules import UniformTime
from fewstep.types import Latents, TokenBatch
from tests.nn.builders import randomised
from tests.objectives.toys import (
    Counter,
    D,
    K,
    Small,
    Wrapped,
    both_predictions,
    data,
    each_path,
    exact_end,
    exact_flow,
    exact_map,
    gradient,
    loss_of,
    seed,
    single,
)

SETTINGS: dict[str, dict[str, Any]] = {"progressive": {"num_steps": 2}, "reflow": {"num_steps": 3}}
each = pytest.mark.parametrize("name", OBJECTIVES)


def build(name: str, **settings: object) -> Objective:
    return OBJECTIVES[name](UniformTime(), **{**SETTINGS.get(name, {}), **settings})


def transformer(name: str, prediction: PredictionType, path: Path | None = None, number: int = 0) -> FlowModel:
    """A small transformer with random weights, as the objective needs it."""
    two_times = OBJECTIVES[name].estimate.two_times
    path = path or linear_path()
    network = randomised(
        lambda: RegressionDenoiser(D, K, width=8, depth=1, num_heads=2, two_times=two_times, max_frequency=4.0),
        seed=number,
        std=0.1,
    )
    return FlowModel(network, path, prediction)


def teacher_of(name: str, path: Path | None = None, prediction: PredictionType = "velocity") -> FlowModel | None:
    return exact_flow(path or linear_path(), prediction) if OBJECTIVES[name].needs_teacher else None


@each
@both_predictions
def test_padding_contributes_nothing(name: str, prediction: PredictionType) -> None:
    settings = {"cross_entropy_weight": 1.0} if name == "flow_matching" else {}
    objective, model = build(name, **settings), transformer(name, prediction)

    def zero_at_padding(x_t: Tensor, t: Tensor, s: Tensor | None, mask: Tensor | None, _: object) -> None:
        assert mask is not None and not (x_t * ~mask[..., None]).any()

    model = FlowModel(Wrapped(model.network, zero_at_padding), model.path, prediction)
    readout, teacher = randomised(lambda: LinearReadout(5, D)), teacher_of(name)
    latents = data(8, seed(2), [3, 2, 3, 1, 3, 3, 2, 1])
    junk = Latents(torch.where(latents.mask[..., None], latents.z, 100.0), latents.mask)
    ids = torch.randint(5, (8, K), generator=seed(3))
    other_ids = torch.where(latents.mask, ids, (ids + 1) % 5)
    clean, padded = (
        loss_of(objective, model, z, seed(4), teacher, 0.05, TokenBatch(i, latents.mask), readout)
        for z, i in ((latents, ids), (junk, other_ids))
    )
    assert clean.loss.isfinite() and clean.loss.requires_grad and not clean.per_example.requires_grad
    assert clean.per_example.shape == (8,)
    torch.testing.assert_close(padded.per_example, clean.per_example, rtol=0, atol=1e-9)
    torch.testing.assert_close(clean.loss, clean.per_example.mean(), rtol=0, atol=1e-12)


@each
@both_predictions
def test_the_passes_of_a_step_are_the_declared_ones(name: str, prediction: PredictionType) -> None:
    two_times, counter, count = OBJECTIVES[name].estimate.two_times, Counter(), 40
    model, teacher = (
        FlowModel(Wrapped(Small(times, width=4), after=counter), linear_path(), prediction)
        for times in (two_times, False)
    )
    objective, latents = build(name), single(data(count, seed(0)))
    second = FlowModel(Wrapped(Small(True, width=4), after=counter), linear_path(), prediction)
    loss_of(objective, model, latents, seed(1), teacher, auxiliary=second).loss.backward()
    for _ in range(getattr(objective, "auxiliary_updates", 0)):
        generated = Generated(latents.z, torch.zeros(count), latents.mask)
        objective.auxiliary_loss(generated, second, seed(2)).backward()
    assert counter.rows / count == pytest.approx(objective.passes_per_step)


@each
@each_path
@both_predictions
def test_loss_and_gradient_are_finite_under_bf16(name: str, path: Path, prediction: PredictionType) -> None:
    model, latents = transformer(name, prediction, path), single(data(16, seed(0)))
    model, teacher = model.float(), FlowModel(Small(), path, "velocity")
    for progress in (0.0, 0.05, 1.0):
        with torch.autocast("cpu", torch.bfloat16):
            output = loss_of(build(name), model, latents, seed(1), teacher, progress)
        slopes = torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True)
        assert output.loss.isfinite() and output.loss.dtype == torch.float32
        assert all(g.isfinite().all() for g in slopes if g is not None) and any(g is not None for g in slopes)


@each
def test_a_seed_gives_one_loss_and_nothing_is_kept_between_steps(name: str) -> None:
    objective, model, teacher = build(name), transformer(name, "x1"), teacher_of(name)
    latents = data(8, seed(0), [3, 1, 2, 3, 3, 3, 3, 2])
    before, other = (loss_of(objective, model, latents, seed(number), teacher).per_example for number in (1, 2))
    loss_of(objective, model, data(4, seed(3)), seed(4), teacher, progress=0.0)
    assert torch.equal(loss_of(objective, model, latents, seed(1), teacher).per_example, before)
    assert not torch.equal(before, other)


@pytest.mark.parametrize("name", [name for name, cls in OBJECTIVES.items() if cls.needs_teacher])
@each_path
def test_the_teacher_never_moves_and_gets_no_gradient(name: str, path: Path) -> None:
    model = FlowModel(Small(), path, "velocity")
    teacher = FlowModel(Small(width=8), path, "x1")
    optimiser = torch.optim.SGD([*model.parameters(), *teacher.parameters()], lr=0.01, weight_decay=0.1)
    before = [[weight.clone() for weight in network.parameters()] for network in (model, teacher)]
    for _ in range(3):
        optimiser.zero_grad()
        loss_of(build(name), model, single(data(8, seed(0))), seed(1), teacher, 0.05).loss.backward()
        assert all(weight.grad is None for weight in teacher.parameters())
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before[1], teacher.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[0], model.parameters(), strict=True))


EXACT: dict[str, Callable[[Path, PredictionType], FlowModel]] = {
    "flow_matching": exact_flow,
    "consistency_training": exact_end,
    "consistency_distillation": exact_end,
    "mean_flow": exact_map,
    "lagrangian": exact_map,
    "semigroup": exact_map,
}
"""The optimum in closed form; those of the others are in the files of their families."""
EXACTLY = {"consistency_distillation": 1e-4, "lagrangian": 1e-9, "semigroup": 1e-9}
"""Objectives whose every single gradient vanishes there; those of the others vanish on average."""


@pytest.mark.parametrize("name", EXACT)
@each_path
@both_predictions
def test_the_gradient_vanishes_at_the_exact_optimum_and_not_a_tenth_away(
    name: str, path: Path, prediction: PredictionType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in EXACTLY:  # flow matching's share of a batch has a gradient of its own
        monkeypatch.setattr(FlowMapObjective, "instant_share", 0.0)
    objective, model = build(name), EXACT[name](path, prediction)
    teacher, batches = teacher_of(name, path, "velocity" if prediction == "x1" else "x1"), 2 if name in EXACTLY else 40

    def gradients() -> Tensor:
        generator = seed(0)
        rows = [
            gradient(loss_of(objective, model, data(256, generator), generator, teacher).loss, model)
            for _ in range(batches)
        ]
        return torch.stack(rows)

    at_optimum = gradients()
    standard_error = at_optimum.std(0) / batches**0.5
    bound = torch.full_like(standard_error, EXACTLY[name]) if name in EXACTLY else 5 * standard_error
    assert (at_optimum.mean(0).abs() < bound).all()
    with torch.no_grad():
        model.network.gain += 0.2
        model.network.shift -= 0.2
    assert (gradients().mean(0).abs() > bound).any()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("flow_matching", {"regression_weight": 0.0}, "regression_weight 0.0"),
        ("flow_matching", {"regression_weight": -1.0, "cross_entropy_weight": 2.0}, "regression_weight -1.0"),
        ("flow_matching", {"cross_entropy_weight": -1.0}, "cross_entropy_weight -1.0"),
        ("flow_matching", {"self_conditioning_probability": 50.0}, "self_conditioning_probability is 50.0"),
        ("consistency_training", {"warmup_share": -0.1}, "warmup_share is -0.1"),
        ("consistency_distillation", {"warmup_share": 2.0}, "warmup_share is 2.0"),
        ("mean_flow", {"adaptive_power": -1.0}, "adaptive_power is -1.0"),
        ("shortcut", {"finest_steps": 12}, "finest_steps is 12"),
        ("shortcut", {"finest_steps": 1}, "finest_steps is 1"),
        ("progressive", {"num_steps": 0}, "num_steps 0"),
        ("progressive", {"teacher_steps": 1}, "teacher_steps 1"),
        ("reflow", {"num_steps": 0}, "num_steps 0"),
        ("reflow", {"times_per_pair": 0}, "times_per_pair 0"),
        ("distribution_matching", {"auxiliary_updates": 0}, "auxiliary_updates 0"),
        ("distribution_matching", {"auxiliary_learning_rate": 0.0}, "auxiliary_learning_rate 0.0"),
        ("distribution_matching", {"initial_share": 1.5}, "initial_share 1.5"),
        ("distribution_matching", {"num_steps": 0}, "num_steps 0"),
        ("reconstruction", {"noise_level_max": -1.0}, "noise_level_max -1.0"),
        ("reconstruction", {"token_masking": 1.0}, "token_masking 1.0"),
        ("reconstruction", {"kl_weight": -1.0}, "kl_weight -1.0"),
        ("head", {"noise_level_max": -1}, "noise_level_max -1"),
        ("head", {"prefix_dropout": 1.0}, "prefix_dropout 1.0"),
        ("known", {"prefix": 0.7, "gaps": 0.4}, "known prefix 0.7, gaps 0.4"),
        ("known", {"prefix": -0.1}, "known prefix -0.1"),
        ("known", {"dropped": 1.0}, "dropped 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name_and_value(name: str, settings: dict[str, Any], message: str) -> None:
    of_latents = {"reconstruction": Reconstruction, "head": HeadTraining, "known": KnownPositions}
    with pytest.raises(ValueError, match=rf"{message}\b.*expected"):
        of_latents[name](**settings) if name in of_latents else build(name, **settings)


def test_an_objective_brings_its_own_kind_of_estimate_and_a_taken_name_is_refused() -> None:
    from tests.outside import Noisy

    assert ESTIMATES["noisy"] is Noisy.estimate
    with pytest.raises(TypeError, match="another estimate is already called 'noisy'"):
        type("Other", (Objective,), {"estimate": EstimateKind("noisy", two_times=True)})
