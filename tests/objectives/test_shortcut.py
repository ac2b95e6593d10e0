"""Laws of shortcut models: the trained jumps are the sampler's steps, each made of its halves; training helps."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import DenoiserOutput, FlowModel, PredictionType
from fewstep.objectives import ShortcutModel
from fewstep.objectives.semigroup import composed_estimate, jump_as_two
from fewstep.paths import Path, linear_path
from fewstep.samplers import FlowSampler
from fewstep.schedules import LogitNormalGrid, LogitNormalTime, TimeGrid, TimeSampler, UniformGrid, UniformTime
from tests.nn.builders import normal
from tests.objectives.flow_map_laws import (
    both_predictions,
    check_one_time_is_refused,
    check_padding_never_contributes,
    each_path,
)
from tests.objectives.maps import D, ExactMap, SmallMap, data, errors_by_training, loss_of, measured_passes, seed

SAMPLERS = [(UniformTime(), UniformGrid()), (LogitNormalTime(-0.4, 1.2), LogitNormalGrid(-0.4, 1.2))]
both_grids = pytest.mark.parametrize(("sampler", "grid"), SAMPLERS, ids=["uniform", "logit_normal"])


class Listening(SmallMap):
    """Keeps the pairs of times that it is asked with."""

    def __init__(self) -> None:
        super().__init__(width=4)
        self.with_gradient: set[tuple[float, float]] = set()
        self.all: set[tuple[float, float]] = set()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        asked = set(zip(t.tolist(), (t if s is None else s).tolist(), strict=True))
        self.all |= asked
        if torch.is_grad_enabled():
            self.with_gradient |= asked
        return super().forward(x_t, t, s)


@both_grids
def test_the_trained_jumps_are_exactly_those_that_the_sampler_makes(sampler: TimeSampler, grid: TimeGrid) -> None:
    trained, used = Listening(), Listening()
    objective = ShortcutModel(sampler, finest_steps=16, instant_share=0.0)
    loss_of(objective, FlowModel(trained, linear_path(), "x1"), data(600, 1, seed(0), torch.float32), seed(1))
    with torch.no_grad():
        for num_steps in (1, 2, 4, 8):
            FlowSampler(linear_path(), grid=grid).sample(
                FlowModel(used, linear_path(), "x1"), torch.zeros(1, 1, D), num_steps=num_steps, generator=seed(0)
            )
    assert trained.with_gradient == used.all and len(used.all) == 15
    # The halves are the sampler's next finer steps, and at the bottom the flow itself.
    times = grid.times(16).tolist()
    assert trained.all - used.all == {(t, t) for t in times[:-1]}


@both_grids
def test_every_number_of_steps_is_drawn_equally_often_and_its_steps_too(sampler: TimeSampler, grid: TimeGrid) -> None:
    t, r, s, finest = ShortcutModel(sampler, finest_steps=8).steps(600, seed(0), "cpu")
    assert t.dtype == torch.float32 and ((t < r) & (r < s)).all()
    found = list(zip(t.tolist(), r.tolist(), s.tolist(), finest.tolist(), strict=True))
    for num_steps in (1, 2, 4):
        coarse, fine = grid.times(num_steps).tolist(), grid.times(2 * num_steps).tolist()
        for k, (start, end) in enumerate(pairwise(coarse)):
            count = found.count((start, fine[2 * k + 1], end, num_steps == 4))
            assert abs(count - 200 / num_steps) < 5 * (200 / num_steps) ** 0.5


@each_path
@both_predictions
@both_grids
def test_a_step_is_the_sum_of_its_halves_at_the_exact_map(
    path: Path, prediction: PredictionType, sampler: TimeSampler, grid: TimeGrid
) -> None:
    model = FlowModel(ExactMap(path, prediction), path, prediction)
    t, r, s, finest = ShortcutModel(sampler, finest_steps=16).steps(40, seed(0), "cpu")
    part = jump_as_two(model, slice(0, 40), normal((40, 2, D), seed(1)), (t, r, s), (r, s), torch.ones(40, 2).bool())
    assert ((part.prediction - part.target).abs().amax((1, 2)) < 1e-9).all()
    assert finest.any() and not finest.all()


@each_path
@both_predictions
def test_the_halves_of_the_finest_steps_are_eulers(path: Path, prediction: PredictionType) -> None:
    network = ExactMap(path, prediction)
    model, x_0 = FlowModel(network, path, prediction), normal((3, 2, D), seed(0))
    t, r, s = (torch.full((3,), time) for time in (0.25, 0.375, 0.5))
    target = composed_estimate(model, x_0, (t, r, s), (t, r), torch.ones(3, 2).bool())
    x_t = x_0
    for start, end in ((t, r), (r, s)):
        x_1 = network.exact.denoise(x_t, start)
        x_t = path.sample(x_1, path.eps_from_x1(x_t, x_1, start), end)
    torch.testing.assert_close(path.sample(target, path.eps_from_x1(x_0, target, t), s), x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["velocity", "x1"])
def test_a_small_network_comes_to_the_exact_transport(prediction: PredictionType) -> None:
    objective = ShortcutModel(UniformTime(), finest_steps=16, instant_share=0.5)
    before, after = errors_by_training(objective, prediction)
    assert after[0] < 0.5 * before[0] and after[1] < 0.7 * before[1]


@both_predictions
def test_what_stands_at_padding_never_contributes(prediction: PredictionType) -> None:
    objective = ShortcutModel(UniformTime(), instant_share=0.5, cross_entropy_weight=1.0, fisher_weight=1.0)
    check_padding_never_contributes(objective, linear_path(), prediction)


def test_passes_are_those_that_are_made() -> None:
    plain = ShortcutModel(UniformTime())
    assert plain.passes_per_step == measured_passes(plain, count=20) == 3.5
    terminal = ShortcutModel(UniformTime(), instant_share=0.5, cross_entropy_weight=1.0)
    assert terminal.passes_per_step == measured_passes(terminal, count=20, cross_entropy=True) == 7.0


def test_a_network_of_one_time_is_refused() -> None:
    check_one_time_is_refused(ShortcutModel(UniformTime()))


@pytest.mark.parametrize(
    "objective",
    [
        lambda: ShortcutModel(UniformTime(), finest_steps=12),
        lambda: ShortcutModel(UniformTime(), finest_steps=1),
        lambda: ShortcutModel(UniformTime(), instant_share=1.5),
    ],
)
def test_settings_out_of_range_are_refused(objective: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        objective()  # type: ignore[operator]
