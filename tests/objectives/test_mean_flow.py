"""Laws of mean flow: the exact map is its optimum, at s = t it is flow matching, training finds the transport."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import DenoiserOutput, FlowModel, PredictionType
from fewstep.objectives import (
    AdaptiveWeight,
    EulerianSelfDistillation,
    FewStepObjective,
    FiniteDifference,
    FlowMatching,
    LagrangianSelfDistillation,
    MeanFlow,
    SemigroupSelfDistillation,
    ShortcutModel,
)
from fewstep.objectives.eulerian import eulerian_terms
from fewstep.paths import Path, linear_path
from fewstep.schedules import UniformTime
from fewstep.types import Latents
from tests.nn.builders import first, normal
from tests.objectives.flow_map_laws import (
    both_predictions,
    check_mean_gradient_vanishes_at_the_exact_map,
    check_one_time_is_refused,
    check_padding_never_contributes,
    each_path,
)
from tests.objectives.maps import D, ExactMap, SmallMap, data, errors_by_training, loss_of, measured_passes, seed


class FixedTimes:
    """Gives the same times whenever asked, so that noise is all that a seed decides."""

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        return torch.rand(batch_size, generator=seed(5)).to(device)


@each_path
@both_predictions
def test_the_mean_gradient_vanishes_at_the_exact_map(path: Path, prediction: PredictionType) -> None:
    objective = MeanFlow(UniformTime(), instant_share=0.25, end_share=0.25)
    check_mean_gradient_vanishes_at_the_exact_map(objective, path, prediction)


@each_path
@both_predictions
def test_pairs_with_equal_times_are_flow_matching_bit_for_bit(path: Path, prediction: PredictionType) -> None:
    torch.manual_seed(0)
    model, latents = FlowModel(SmallMap(), path, prediction), data(16, 2, seed(0), torch.float32)
    flow, instant = (
        objective.forward(model, latents, tokens=None, readout=None, generator=seed(1))
        for objective in (FlowMatching(FixedTimes()), MeanFlow(FixedTimes(), instant_share=1.0, end_share=0.0))
    )
    assert torch.equal(instant.per_example, flow.per_example)
    gradients = [torch.autograd.grad(output.loss, list(model.parameters())) for output in (flow, instant)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@each_path
@both_predictions
def test_the_identity_itself_is_flow_matching_where_the_times_meet(path: Path, prediction: PredictionType) -> None:
    # A sampler that always says the same makes s = t of a pair that is treated as a jump, with a derivative.
    model, latents = FlowModel(ExactMap(path, prediction), path, prediction), data(16, 2, seed(0))
    flow, jumps = (
        objective.forward(model, latents, tokens=None, readout=None, generator=seed(1))
        for objective in (FlowMatching(FixedTimes()), MeanFlow(FixedTimes(), instant_share=0.0, end_share=0.0))
    )
    torch.testing.assert_close(jumps.per_example, flow.per_example, rtol=0, atol=1e-6)


def test_on_the_linear_path_it_is_the_identity_of_the_paper() -> None:
    # u = v + (s - t) du/dt with F = x + (1 - t) u, hence dF/dt = v - u + (1 - t) du/dt.
    model = FlowModel(SmallMap(), linear_path(), "velocity")
    x, u, v, change = (normal((4, 2, D), seed(number)) for number in range(4))
    t, s = (torch.tensor(times, dtype=torch.float64) for times in ([0.0, 0.2, 0.5, 0.9], [0.3, 0.8, 1.0, 0.95]))
    time, end = t[:, None, None], s[:, None, None]
    pull, drift = eulerian_terms(model, x, t, s, (1 - time) * (v - u), v - u + (1 - time) * change)
    torch.testing.assert_close(pull + drift, (1 - time) * (v + (end - time) * change - u), rtol=0, atol=1e-12)


@both_predictions
def test_forward_mode_and_finite_differences_give_one_loss(prediction: PredictionType) -> None:
    model, latents = FlowModel(ExactMap(linear_path(), prediction), linear_path(), prediction), data(32, 2, seed(0))
    one, other = (
        loss_of(MeanFlow(FixedTimes(), derivative=derivative), model, latents, seed(1)).loss
        for derivative in (None, FiniteDifference(1e-3))
    )
    torch.testing.assert_close(other, one, rtol=1e-3, atol=0)


@pytest.mark.parametrize("prediction", ["velocity", "x1"])
def test_a_small_network_comes_to_the_exact_transport(prediction: PredictionType) -> None:
    before, after = errors_by_training(MeanFlow(UniformTime()), prediction)
    assert after[0] < 0.5 * before[0] and after[1] < 0.8 * before[1]


def test_the_adaptive_weight_weighs_each_example_by_its_own_error() -> None:
    model, latents = FlowModel(ExactMap(linear_path(), "x1"), linear_path(), "x1"), data(16, 2, seed(0))
    plain, weighed = (
        loss_of(MeanFlow(UniformTime(), weight=weight), model, latents, seed(1))
        for weight in (AdaptiveWeight(), AdaptiveWeight(1.0, floor=0.01))
    )
    torch.testing.assert_close(weighed.per_example, plain.per_example / (plain.per_example + 0.01))
    torch.testing.assert_close(weighed.terms["squared_error"], plain.loss.detach())


@both_predictions
def test_what_stands_at_padding_never_contributes(prediction: PredictionType) -> None:
    objective = MeanFlow(UniformTime(), cross_entropy_weight=1.0, fisher_weight=1.0)
    check_padding_never_contributes(objective, linear_path(), prediction)


class RefusesPadding(SmallMap):
    """Fails where a state is not zero at padding: what a network that does not look at its mask would see."""

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        assert mask is not None and not (x_t * ~mask[..., None]).any()
        return super().forward(x_t, t, s)


@pytest.mark.parametrize(
    "objective",
    [
        MeanFlow(UniformTime()),
        LagrangianSelfDistillation(UniformTime()),
        EulerianSelfDistillation(UniformTime()),
        SemigroupSelfDistillation(UniformTime()),
        ShortcutModel(UniformTime(), instant_share=0.5),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_states_of_every_flow_map_are_zero_at_padding(objective: FewStepObjective) -> None:
    latents = data(8, 2, seed(0), torch.float32)
    padded = Latents(latents.z, first([2, 1] * 4, 2))
    loss_of(objective, FlowModel(RefusesPadding(), linear_path(), "velocity"), padded, seed(1))


def test_passes_are_those_that_are_made() -> None:
    plain = MeanFlow(UniformTime())
    assert plain.passes_per_step == measured_passes(plain, count=20) == 3.5
    finite = MeanFlow(UniformTime(), derivative=FiniteDifference(), instant_share=0.75)
    assert finite.passes_per_step == measured_passes(finite, count=20) == 3.5
    terminal = MeanFlow(UniformTime(), cross_entropy_weight=1.0)
    assert terminal.passes_per_step == measured_passes(terminal, count=20, cross_entropy=True) == 6.5


def test_a_network_of_one_time_is_refused() -> None:
    check_one_time_is_refused(MeanFlow(UniformTime()))
