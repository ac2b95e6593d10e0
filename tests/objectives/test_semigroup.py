"""Laws of semigroup self-distillation: the exact map is its optimum, training finds it, one jump ends where two end."""

import pytest
import torch

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import SemigroupSelfDistillation
from fewstep.objectives.few_step import x1_from_jump
from fewstep.objectives.semigroup import composed_estimate, first_share
from fewstep.paths import Path, linear_path
from fewstep.schedules import UniformTime
from tests.nn.builders import normal
from tests.objectives.flow_map_laws import (
    both_predictions,
    check_boundary_holds,
    check_loss_is_zero_at_the_exact_map,
    check_one_time_is_refused,
    check_padding_never_contributes,
    each_path,
)
from tests.objectives.maps import D, ExactMap, errors_by_training, measured_passes, seed

TIMES = tuple(
    torch.tensor(times, dtype=torch.float64)
    for times in ([0.0, 0.2, 0.5, 0.7], [0.1, 0.2, 0.7, 0.9], [0.4, 0.9, 0.9, 1.0])
)


@each_path
@both_predictions
def test_the_exact_map_of_the_tests_is_the_flow(path: Path, prediction: PredictionType) -> None:
    network, x_t = ExactMap(path, prediction), normal((4, 2, D), seed(0))
    model, (t, _, s) = FlowModel(network, path, prediction), TIMES
    jump = network.jump(x_t, t, s)
    torch.testing.assert_close(model.jump(x_t, t, s), jump, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.denoise(x_t, t, s=s), x1_from_jump(model, jump, x_t, t, s), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.denoise(x_t, t, s=t), network.exact.denoise(x_t, t), rtol=0, atol=1e-12)
    x_0, zero = normal((4, 2, D), seed(1)), torch.zeros(4)
    torch.testing.assert_close(network.jump(x_0, zero, s), network.exact.flow(x_0, s), rtol=0, atol=1e-12)


@each_path
@both_predictions
def test_a_jump_to_where_one_is_is_the_identity(path: Path, prediction: PredictionType) -> None:
    check_boundary_holds(prediction, path)


@each_path
@both_predictions
def test_the_loss_is_zero_at_the_exact_map(path: Path, prediction: PredictionType) -> None:
    objective = SemigroupSelfDistillation(UniformTime(), instant_share=0.0, end_share=0.3)
    check_loss_is_zero_at_the_exact_map(objective, path, prediction)


@each_path
@both_predictions
def test_one_jump_towards_the_composed_estimate_ends_where_two_jumps_end(
    path: Path, prediction: PredictionType
) -> None:
    network = ExactMap(path, prediction)
    with torch.no_grad():
        network.gain += 0.3  # any map will do
    model, x_t, (t, r, s) = FlowModel(network, path, prediction), normal((4, 2, D), seed(0)), TIMES
    composed = composed_estimate(model, x_t, TIMES, (r, s), torch.ones(4, 2).bool())
    two = model.jump(model.jump(x_t, t, r), r, s)
    torch.testing.assert_close(composed, x1_from_jump(model, two, x_t, t, s), rtol=0, atol=1e-10)
    assert not composed.requires_grad


@each_path
def test_times_that_coincide_in_float32_make_no_nan(path: Path) -> None:
    last = 1 - 2.0**-24
    t, r, s = (torch.tensor(times) for times in ([0.3, 0.3, last, last], [0.3, 0.3, last, 1.0], [0.3, 0.9, last, 1.0]))
    share = first_share(path, (t, r, s), torch.zeros(4, 1, 1))
    assert share.isfinite().all() and ((share >= 0) & (share <= 1)).all()


@pytest.mark.parametrize("prediction", ["velocity", "x1"])
def test_a_small_network_comes_to_the_exact_transport(prediction: PredictionType) -> None:
    before, after = errors_by_training(SemigroupSelfDistillation(UniformTime()), prediction)
    assert after[0] < 0.5 * before[0] and after[1] < 0.7 * before[1]


@both_predictions
def test_what_stands_at_padding_never_contributes(prediction: PredictionType) -> None:
    objective = SemigroupSelfDistillation(UniformTime(), cross_entropy_weight=1.0, fisher_weight=1.0)
    check_padding_never_contributes(objective, linear_path(), prediction)


def test_passes_are_those_that_are_made() -> None:
    plain = SemigroupSelfDistillation(UniformTime())
    assert plain.passes_per_step == measured_passes(plain, count=20) == 4.0
    terminal = SemigroupSelfDistillation(UniformTime(), instant_share=0.25, cross_entropy_weight=1.0)
    assert terminal.passes_per_step == measured_passes(terminal, count=20, cross_entropy=True) == 7.5


def test_a_network_of_one_time_is_refused() -> None:
    check_one_time_is_refused(SemigroupSelfDistillation(UniformTime()))
