"""Laws of Eulerian self-distillation: the exact map is its optimum, training finds it, passes are counted."""

from fewstep.denoisers import PredictionType
from fewstep.objectives import EulerianSelfDistillation, FiniteDifference
from fewstep.paths import Path, linear_path
from fewstep.schedules import UniformTime
from tests.objectives.flow_map_laws import (
    both_predictions,
    check_loss_is_zero_at_the_exact_map,
    check_one_time_is_refused,
    check_padding_never_contributes,
    each_path,
)
from tests.objectives.maps import errors_by_training, measured_passes


@each_path
@both_predictions
def test_the_loss_is_zero_at_the_exact_map(path: Path, prediction: PredictionType) -> None:
    objective = EulerianSelfDistillation(UniformTime(), instant_share=0.0, end_share=0.3)
    check_loss_is_zero_at_the_exact_map(objective, path, prediction)


def test_a_small_network_comes_to_the_exact_transport() -> None:
    before, after = errors_by_training(EulerianSelfDistillation(UniformTime()), "velocity", rate=3e-3)
    assert after[0] < 0.3 * before[0] and after[1] < 0.5 * before[1]


@both_predictions
def test_what_stands_at_padding_never_contributes(prediction: PredictionType) -> None:
    objective = EulerianSelfDistillation(UniformTime(), cross_entropy_weight=1.0, fisher_weight=1.0)
    check_padding_never_contributes(objective, linear_path(), prediction)


def test_passes_are_those_that_are_made() -> None:
    plain = EulerianSelfDistillation(UniformTime())
    assert plain.passes_per_step == measured_passes(plain, count=20) == 4.0
    finite = EulerianSelfDistillation(UniformTime(), derivative=FiniteDifference(), cross_entropy_weight=1.0)
    assert finite.passes_per_step == measured_passes(finite, count=20, cross_entropy=True) == 7.5


def test_a_network_of_one_time_is_refused() -> None:
    check_one_time_is_refused(EulerianSelfDistillation(UniformTime()))
