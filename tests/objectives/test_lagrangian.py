"""Laws of Lagrangian self-distillation: the exact map is its optimum, training finds it, passes are counted."""

import pytest
import torch

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import FiniteDifference, LagrangianSelfDistillation
from fewstep.objectives.few_step import Draw
from fewstep.objectives.flow_map import Jumps
from fewstep.objectives.lagrangian import end_and_change
from fewstep.paths import Path, linear_path
from fewstep.schedules import UniformTime
from tests.nn.builders import normal
from tests.objectives.flow_map_laws import (
    both_predictions,
    check_loss_is_zero_at_the_exact_map,
    check_one_time_is_refused,
    check_padding_never_contributes,
    each_path,
)
from tests.objectives.maps import D, ExactMap, data, errors_by_training, loss_of, measured_passes, seed


@each_path
@both_predictions
@pytest.mark.parametrize("target_gradient", [False, True])
def test_the_loss_is_zero_at_the_exact_map(path: Path, prediction: PredictionType, target_gradient: bool) -> None:
    objective = LagrangianSelfDistillation(
        UniformTime(), instant_share=0.0, end_share=0.3, target_gradient=target_gradient
    )
    check_loss_is_zero_at_the_exact_map(objective, path, prediction)


@each_path
@both_predictions
def test_the_end_of_a_jump_and_its_change_are_those_of_the_jump(path: Path, prediction: PredictionType) -> None:
    network = ExactMap(path, prediction)
    with torch.no_grad():
        network.gain += 0.2
    model, x_t = FlowModel(network, path, prediction), normal((4, 2, D), seed(0))
    t, s = (torch.tensor(times, dtype=torch.float64) for times in ([0.0, 0.2, 0.5, 0.9], [0.1, 0.6, 0.8, 0.99]))
    one = torch.ones_like(s)
    estimate, change = torch.func.jvp(lambda end: model.denoise(x_t, t, s=end), (s,), (one,))
    state, moved = end_and_change(model, x_t, t, s, estimate, change)
    end, speed = torch.func.jvp(lambda end: model.jump(x_t, t, end), (s,), (one,))
    torch.testing.assert_close(state, end, rtol=0, atol=1e-12)
    velocity = moved if prediction == "velocity" else model.velocity_of(state, moved, s)
    torch.testing.assert_close(velocity, speed, rtol=0, atol=1e-10)


def test_the_right_side_has_a_gradient_where_it_is_asked_for_only() -> None:
    for asked in (False, True):
        network = ExactMap(linear_path(), "velocity")
        model, x_1 = FlowModel(network, linear_path(), "velocity"), data(8, 2, seed(0)).z
        draw = Draw(x_1, normal((8, 2, D), seed(1)), torch.ones(8, 2).bool(), seed(2), 1.0)
        t, s = torch.full((8,), 0.3), torch.full((8,), 0.7)
        jumps = Jumps(slice(0, 8), draw, model.path.sample(x_1, draw.x_0, t), t, s)
        part = LagrangianSelfDistillation(UniformTime(), target_gradient=asked).jump_regression(model, jumps)
        assert part.target.requires_grad is asked and part.prediction.requires_grad


def test_a_small_network_comes_to_the_exact_transport() -> None:
    before, after = errors_by_training(LagrangianSelfDistillation(UniformTime()), "velocity")
    assert after[0] < 0.3 * before[0] and after[1] < 0.5 * before[1]


@both_predictions
def test_what_stands_at_padding_never_contributes(prediction: PredictionType) -> None:
    objective = LagrangianSelfDistillation(UniformTime(), cross_entropy_weight=1.0, fisher_weight=1.0)
    check_padding_never_contributes(objective, linear_path(), prediction)


def test_passes_are_those_that_are_made() -> None:
    plain = LagrangianSelfDistillation(UniformTime())
    assert plain.passes_per_step == measured_passes(plain, count=20) == 5.0
    both = LagrangianSelfDistillation(UniformTime(), target_gradient=True)
    assert both.passes_per_step == measured_passes(both, count=20) == 6.0
    finite = LagrangianSelfDistillation(UniformTime(), derivative=FiniteDifference())
    assert finite.passes_per_step == measured_passes(finite, count=20) == 6.5
    terminal = LagrangianSelfDistillation(UniformTime(), cross_entropy_weight=1.0)
    assert terminal.passes_per_step == measured_passes(terminal, count=20, cross_entropy=True) == 8.0


def test_a_network_of_one_time_is_refused() -> None:
    check_one_time_is_refused(LagrangianSelfDistillation(UniformTime()))


def test_the_same_seed_gives_the_same_loss() -> None:
    model, objective = (
        FlowModel(ExactMap(linear_path(), "x1"), linear_path(), "x1"),
        LagrangianSelfDistillation(UniformTime()),
    )
    one, two, three = (loss_of(objective, model, data(8, 2, seed(0)), seed(number)).loss for number in (1, 1, 2))
    assert one == two != three
