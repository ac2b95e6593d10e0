"""Laws of flow maps: the jump, pairs of times, the identities of the papers, and jumps that are two."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import FlowMatching, MeanFlow, SemigroupSelfDistillation, ShortcutModel
from fewstep.objectives.base import Batch
from fewstep.objectives.distillation import x1_from_jump
from fewstep.objectives.flow_maps import FlowMapObjective, end_and_change, jump_as_two
from fewstep.paths import Path, linear_path
from fewstep.samplers import FlowSampler
from fewstep.schedules import LogitNormalGrid, LogitNormalTime, TimeGrid, TimeSampler, UniformGrid, UniformTime
from tests.nn.builders import normal
from tests.objectives.toys import (
    D,
    FixedTimes,
    K,
    Small,
    Wrapped,
    both_predictions,
    data,
    each_path,
    exact_map,
    gradient,
    jump,
    loss_of,
    seed,
    single,
)

TIMES = tuple(
    torch.tensor(times, dtype=torch.float64)
    for times in ([0.0, 0.2, 0.5, 0.7], [0.1, 0.2, 0.7, 0.9], [0.4, 0.9, 0.9, 1.0])
)
SAMPLERS = [(UniformTime(), UniformGrid()), (LogitNormalTime(-0.4, 1.2), LogitNormalGrid(-0.4, 1.2))]
both_grids = pytest.mark.parametrize(("sampler", "grid"), SAMPLERS, ids=["uniform", "logit_normal"])


def moved(path: Path, prediction: PredictionType) -> FlowModel:
    """A flow map that is not the exact one."""
    model = exact_map(path, prediction)
    with torch.no_grad():
        model.network.gain += 0.3
    return model


@pytest.mark.parametrize(("instant", "end"), [(0.5, 0.1), (1.0, 0.0), (0.0, 1.0), (0.3, 0.6)])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_times_are_in_order_and_shares_are_kept(
    instant: float, end: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlowMapObjective, "instant_share", instant)
    monkeypatch.setattr(FlowMapObjective, "end_share", end)
    latents = data(count, seed(0))
    t, s, first = MeanFlow(LogitNormalTime(-0.4, 1.0)).times(Batch(latents.z, latents.z, latents.mask, seed(1)))
    assert t.shape == s.shape == (count,) and t.dtype == s.dtype == torch.float32
    assert ((t > 0) & (t < 1) & (t <= s) & (s <= 1)).all()
    assert first == int((t == s).sum()) == round(instant * count) and torch.equal(t[:first], s[:first])
    last = int((s == 1).sum())
    assert last == min(round(end * count), count - first) and (s[count - last :] == 1).all()


@each_path
@both_predictions
def test_pairs_with_equal_times_are_flow_matching_bit_for_bit(
    path: Path, prediction: PredictionType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlowMapObjective, "instant_share", 1.0)
    latents, body = single(data(16, seed(0))), Small(two_times=True)
    plain = Small()
    plain.load_state_dict(body.state_dict())
    results = []
    for objective, network in ((FlowMatching(FixedTimes()), plain), (MeanFlow(FixedTimes()), body)):
        model = FlowModel(network, path, prediction)
        output = loss_of(objective, model, latents, seed(1))
        results.append((output.per_example, gradient(output.loss, model)))
    assert all(torch.equal(*both) for both in zip(*results, strict=True))


def test_on_the_linear_path_mean_flow_is_the_identity_of_the_paper() -> None:
    """u is pulled to v + (s - t) du/dt, with u the velocity of the estimate (arXiv:2505.13447, eq. 6)."""
    model, latents = moved(linear_path(), "velocity"), data(4, seed(0))
    t, s = (torch.tensor(times, dtype=torch.float64) for times in ([0.0, 0.2, 0.5, 0.9], [0.3, 0.8, 1.0, 0.95]))
    batch = Batch(latents.z, normal((4, K, D), seed(1)), latents.mask, seed(2))
    x_t, v = model.path.sample(batch.x_1, batch.x_0, t), model.path.velocity(batch.x_1, batch.x_0, t)
    part = MeanFlow(UniformTime()).jump(model, batch, x_t, t, s)
    u, change = torch.func.jvp(lambda x, time: model.predict(x, time, s).value, (x_t, t), (v, torch.ones_like(t)))
    torch.testing.assert_close(part.prediction, u, rtol=0, atol=1e-12)
    torch.testing.assert_close(part.target, v + (s - t)[:, None, None] * change, rtol=0, atol=1e-10)
    assert part.prediction.requires_grad and not part.target.requires_grad


@each_path
@both_predictions
def test_the_end_of_a_jump_and_its_change_are_those_of_the_jump(path: Path, prediction: PredictionType) -> None:
    model, x_t = moved(path, prediction), normal((4, K, D), seed(0))
    t, s = (torch.tensor(times, dtype=torch.float64) for times in ([0.0, 0.2, 0.5, 0.9], [0.1, 0.6, 0.8, 0.99]))
    ones = torch.ones_like(s)
    estimate, change = torch.func.jvp(lambda end: model.denoise(x_t, t, s=end), (s,), (ones,))
    state, value = end_and_change(model, x_t, t, s, estimate, change)
    end, speed = torch.func.jvp(lambda end: jump(model, x_t, t, end), (s,), (ones,))
    torch.testing.assert_close(state, end, rtol=0, atol=1e-12)
    velocity = value if prediction == "velocity" else model.path.velocity_from_x1(state, value, s)
    torch.testing.assert_close(velocity, speed, rtol=0, atol=1e-10)


def test_the_adaptive_weight_weighs_each_example_by_its_own_error() -> None:
    model, latents = exact_map(linear_path(), "x1"), data(16, seed(0))
    plain, weighed = (
        loss_of(SemigroupSelfDistillation(UniformTime(), adaptive_power=power), model, latents, seed(1))
        for power in (0.0, 1.0)
    )
    torch.testing.assert_close(weighed.per_example, plain.per_example / (plain.per_example + 1e-3))
    error = torch.tensor([0.0, 0.1, 4.0], requires_grad=True)
    loss = MeanFlow(UniformTime(), adaptive_power=0.5).weigh(error)
    (slope,) = torch.autograd.grad(loss.sum(), error)
    torch.testing.assert_close(slope, (error.detach() + 1e-3) ** -0.5, msg="no gradient of its own")


@each_path
@both_predictions
def test_one_jump_along_the_composed_estimate_ends_where_two_jumps_end(path: Path, prediction: PredictionType) -> None:
    model, x_t, (t, r, s) = moved(path, prediction), normal((4, K, D), seed(0)), TIMES
    target = jump_as_two(model, x_t, TIMES, (r, s), torch.ones(4, K).bool()).target
    composed = target if prediction == "x1" else path.x1_from_velocity(x_t, target, t)
    two = jump(model, jump(model, x_t, t, r), r, s)
    torch.testing.assert_close(composed, x1_from_jump(model, two, x_t, t, s), rtol=0, atol=1e-10)
    assert not target.requires_grad


@each_path
def test_times_that_coincide_in_float32_make_no_nan(path: Path) -> None:
    last = 1 - 2.0**-24
    t, r, s = (torch.tensor(times) for times in ([0.3, 0.3, last, last], [0.3, 0.3, last, 1.0], [0.3, 0.9, last, 1.0]))
    model, x_t = FlowModel(Small(two_times=True), path, "x1"), normal((4, K, D), seed(0)).float()
    target, estimates = jump_as_two(model, x_t, (t, r, s), (r, s), torch.ones(4, K).bool()).target, model.denoise
    assert target.isfinite().all() and target.abs().max() < 100 * estimates(x_t, t, s=s).abs().max()


@both_grids
def test_the_trained_jumps_of_a_shortcut_are_exactly_those_that_the_sampler_makes(
    sampler: TimeSampler, grid: TimeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShortcutModel, "instant_share", 0.0)
    with_gradient, asked = set[tuple[float, float]](), set[tuple[float, float]]()

    def note(x_t: Tensor, t: Tensor, s: Tensor, *_: object) -> None:
        times = set(zip(t.tolist(), s.tolist(), strict=True))
        asked.update(times)
        if torch.is_grad_enabled():
            with_gradient.update(times)

    model = FlowModel(Wrapped(Small(two_times=True, width=4), note), linear_path(), "x1")
    loss_of(ShortcutModel(sampler, finest_steps=16), model, single(data(600, seed(0))), seed(1))
    trained, halves = set(with_gradient), asked - with_gradient
    asked.clear()
    with torch.no_grad():
        for num_steps in (1, 2, 4, 8):
            x_0 = torch.zeros(1, 1, D)
            FlowSampler(linear_path(), grid=grid).sample(model, x_0, num_steps=num_steps, generator=seed(0))
    assert trained == asked and len(asked) == 15
    # The halves are the sampler's next finer steps, and at the bottom the flow itself.
    assert halves == {(t, t) for t in grid.times(16).tolist()[:-1]}


@both_grids
def test_every_number_of_steps_is_drawn_equally_often_and_its_steps_too(sampler: TimeSampler, grid: TimeGrid) -> None:
    t, r, s, finest = ShortcutModel(sampler, finest_steps=8).steps(600, seed(0), "cpu")
    assert t.dtype == torch.float32 and ((t < r) & (r < s)).all()
    steps = list(zip(t.tolist(), r.tolist(), s.tolist(), finest.tolist(), strict=True))
    for num_steps in (1, 2, 4):
        coarse, fine = grid.times(num_steps).tolist(), grid.times(2 * num_steps).tolist()
        for k, (start, end) in enumerate(pairwise(coarse)):
            count = steps.count((start, fine[2 * k + 1], end, num_steps == 4))
            assert abs(count - 200 / num_steps) < 5 * (200 / num_steps) ** 0.5


@each_path
@both_predictions
@both_grids
def test_a_step_is_the_sum_of_its_halves_at_the_exact_map(
    path: Path, prediction: PredictionType, sampler: TimeSampler, grid: TimeGrid
) -> None:
    t, r, s, finest = ShortcutModel(sampler, finest_steps=16).steps(40, seed(0), "cpu")
    x_t, mask = normal((40, K, D), seed(1)), torch.ones(40, K).bool()
    part = jump_as_two(exact_map(path, prediction), x_t, (t, r, s), (r, s), mask)
    assert (part.prediction - part.target).abs().max() < 1e-9
    assert finest.any() and not finest.all()
