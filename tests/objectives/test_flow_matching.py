"""Laws of flow matching: its terms, its cross-entropy through token logits or the readout, self-conditioning."""

import torch
from torch import Tensor, nn

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import FlowMatching
from fewstep.paths import Path, linear_path
from fewstep.readouts import LinearReadout, TransformerReadout
from fewstep.schedules import LogitNormalTime, UniformTime
from fewstep.types import Latents, TokenBatch
from tests.nn.builders import randomised
from tests.objectives.toys import D, both_predictions, data, each_path, loss_of, seed
from tests.toys import ToyNetwork

V = 5
Asked = list[tuple[Tensor, Tensor, Tensor | None]]


class Stub(ToyNetwork):
    """tanh of the state plus what is fed back; it records its arguments, and may have token logits."""

    def __init__(self, readout: nn.Module | None = None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.readout = readout
        self.asked: Asked = []

    def value(self, x_t: Tensor, t: Tensor, s: Tensor | None, mask: Tensor | None, self_cond: Tensor | None) -> Tensor:
        self.asked.append((x_t, t, self_cond))
        return x_t.tanh() + self.gain * x_t + (0 if self_cond is None else self_cond)

    def token_logits(self, value: Tensor, mask: Tensor | None) -> Tensor | None:
        return None if self.readout is None else self.readout(value, mask)


def batch(lengths: list[int]) -> tuple[Latents, TokenBatch]:
    latents = data(len(lengths), seed(0), lengths)
    return latents, TokenBatch(torch.randint(V, latents.mask.shape, generator=seed(1)), latents.mask)


def linear_readout() -> LinearReadout:
    return randomised(lambda: LinearReadout(V, D))


@both_predictions
def test_the_loss_is_the_weighted_mean_of_its_terms_over_real_positions(prediction: PredictionType) -> None:
    path, network, readout, (latents, tokens) = linear_path(), Stub(), linear_readout(), batch([3, 1, 2])
    objective = FlowMatching(UniformTime(), regression_weight=2.0, cross_entropy_weight=0.5)
    model = FlowModel(network, path, prediction)
    output = objective.forward(model, latents, tokens=tokens, readout=readout, generator=seed(3))
    x_t, t, _ = network.asked[-1]
    value, x_0 = network(x_t, t).value, path.eps_from_x1(x_t, latents.z, t)
    target = latents.z if prediction == "x1" else path.velocity(latents.z, x_0, t)
    error = torch.stack([(value - target)[b][latents.mask[b]].square().mean() for b in range(3)])
    estimate = value if prediction == "x1" else path.x1_from_velocity(x_t, value, t)
    nats = readout.loss(estimate, tokens.ids, tokens.mask)
    torch.testing.assert_close(output.per_example, 2 * error + 0.5 * nats, check_dtype=False, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.terms["squared_error"], error.mean(), check_dtype=False, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.terms["cross_entropy_nats"], nats.mean(), check_dtype=False)


def test_own_logits_and_the_readout_give_one_cross_entropy_when_they_say_the_same() -> None:
    latents, tokens = batch([3, 1, 2])
    readout = randomised(lambda: TransformerReadout(V, D, width=8, depth=1, num_heads=2))
    objective = FlowMatching(UniformTime(), regression_weight=0.0, cross_entropy_weight=1.0)
    through, own, other = (
        objective.forward(
            FlowModel(network, linear_path(), "x1"), latents, tokens=tokens, readout=given, generator=seed(1)
        ).per_example
        for network, given in ((Stub(), readout), (Stub(readout), readout), (Stub(readout), linear_readout()))
    )
    torch.testing.assert_close(own, through, check_dtype=False, rtol=1e-6, atol=1e-6)
    assert torch.equal(other, own), "own logits win over another readout"


@both_predictions
def test_the_share_of_steps_that_feed_back_is_the_given_one(prediction: PredictionType) -> None:
    (latents, _), generator, steps = batch([3, 1, 2]), seed(0), 400
    objective, fed = FlowMatching(UniformTime(), self_conditioning_probability=0.3), 0
    for _ in range(steps):
        network = Stub()
        model = FlowModel(network, linear_path(), prediction)
        loss_of(objective, model, latents, generator)
        x_t, t, self_cond = network.asked[-1]
        if self_cond is not None:
            fed += 1
            assert len(network.asked) == 2 and not self_cond.requires_grad
            assert torch.equal(self_cond, model.denoise(x_t, t).detach())
        else:
            assert len(network.asked) == 1, "a step without feedback costs one evaluation"
    assert abs(fed / steps - 0.3) < 5 * (0.3 * 0.7 / steps) ** 0.5


class AsVelocity(ToyNetwork):
    """The velocity that belongs to another network's clean estimate."""

    def __init__(self, network: nn.Module, path: Path) -> None:
        super().__init__()
        self.network, self.path = network, path

    def value(self, x_t: Tensor, t: Tensor, s: Tensor | None, mask: Tensor | None, self_cond: Tensor | None) -> Tensor:
        return self.path.velocity_from_x1(x_t, self.network(x_t, t).value, t)


@each_path
def test_the_velocity_loss_of_a_clean_estimate_is_that_of_the_velocity_it_stands_for(path: Path) -> None:
    (latents, _), network = batch([3, 1, 2]), Stub()
    of_x1, of_velocity = FlowModel(network, path, "x1"), FlowModel(AsVelocity(network, path), path, "velocity")
    times = LogitNormalTime(mean=-1.0, std=0.5)  # none as near to the data as where the weight is held
    expected = loss_of(FlowMatching(times), of_velocity, latents, seed(2)).per_example
    ours = loss_of(FlowMatching(times, velocity_loss=True), of_x1, latents, seed(2)).per_example
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    near = FlowMatching(LogitNormalTime(mean=9.0, std=0.1), velocity_loss=True)
    plain = loss_of(FlowMatching(near.time_sampler), of_x1, latents, seed(2)).per_example
    assert bool((loss_of(near, of_x1, latents, seed(2)).per_example < 1000 * plain).all()), "bounded near the data"
