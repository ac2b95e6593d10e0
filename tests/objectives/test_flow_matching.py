"""Laws of flow matching: its optimum is the posterior mean; padding, cross-entropy, self-conditioning, seeds."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoisers import CategoricalDenoiser, DenoiserOutput, FlowModel, PredictionType, RegressionDenoiser
from fewstep.objectives import FlowMatching
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.readouts import LinearReadout, TransformerReadout
from fewstep.schedules import UniformTime
from fewstep.types import Latents, TokenBatch
from tests.nn.builders import first, normal, randomised
from tests.toys import GaussianModel

V, D, K, B = 5, 2, 4, 3
each_path = pytest.mark.parametrize(
    "path", [linear_path(), variance_preserving_path()], ids=["linear", "variance_preserving"]
)
both_predictions = pytest.mark.parametrize("prediction", ["x1", "velocity"])
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)


class Stub(nn.Module):
    """A network that answers by a function of (x_t, t, self_cond), and keeps what it was asked."""

    def __init__(self, readout: nn.Module | None = None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(D, dtype=torch.float64))
        self.readout = readout
        self.asked: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def answer(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t.tanh()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        self.asked.append((x_t, t, self_cond))
        value = self.answer(x_t, t) + self.gain * x_t + self.shift
        if self_cond is not None:
            value = value + self_cond
        return DenoiserOutput(value, None if self.readout is None else self.readout(value, mask))


class LinearGaussian(Stub):
    """The closed-form optimum for Gaussian data, plus ``gain`` x_t + ``shift``."""

    def __init__(self, path: Path, prediction: PredictionType) -> None:
        super().__init__()
        self.exact = GaussianModel(path, MEAN, COVARIANCE)
        self.prediction = prediction

    def answer(self, x_t: Tensor, t: Tensor) -> Tensor:
        x1_hat = self.exact.denoise(x_t, t)
        return x1_hat if self.prediction == "x1" else self.exact.velocity_of(x_t, x1_hat, t)


def batch(generator: torch.Generator, lengths: list[int] | None = None) -> tuple[Latents, TokenBatch]:
    mask = first([4, 2, 3] if lengths is None else lengths, K)
    ids = torch.randint(V, (len(mask), K), generator=generator)
    return Latents(normal((len(mask), K, D), generator) * mask[..., None], mask), TokenBatch(ids, mask)


def readout_of(stride: int = 1) -> LinearReadout:
    return randomised(lambda: LinearReadout(V, D, stride=stride))


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@each_path
@both_predictions
def test_the_gradient_vanishes_at_the_closed_form_optimum_for_gaussian_data(
    path: Path, prediction: PredictionType, generator: torch.Generator
) -> None:
    network, objective = LinearGaussian(path, prediction), FlowMatching(UniformTime())
    model, root, mask = (
        FlowModel(network, path, prediction),
        torch.linalg.cholesky(COVARIANCE),
        torch.ones(256, 2).bool(),
    )
    tokens, readout, batches = TokenBatch(torch.zeros(256, 2).long(), mask), readout_of(), 64

    def gradients() -> Tensor:
        rows = []
        for _ in range(batches):
            latents = Latents(MEAN + normal((256, 2, D), generator) @ root.T, mask)
            loss = objective.forward(model, latents, tokens=tokens, readout=readout, generator=generator).loss
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [network.gain, network.shift])]))
        return torch.stack(rows)

    at_optimum = gradients()
    standard_error = at_optimum.std(0) / batches**0.5
    assert (at_optimum.mean(0).abs() < 5 * standard_error).all()
    with torch.no_grad():
        network.gain += 0.1
        network.shift -= 0.1
    # The same bound tells a tenth of the estimate away from the optimum: the law has power.
    assert (gradients().mean(0).abs() > 5 * standard_error).all()


@both_predictions
def test_the_loss_is_the_weighted_mean_of_its_terms_over_real_positions(
    prediction: PredictionType, generator: torch.Generator
) -> None:
    path, network, readout = linear_path(), Stub(), readout_of()
    latents, tokens = batch(generator)
    model = FlowModel(network, path, prediction)
    objective = FlowMatching(UniformTime(), regression_weight=2.0, cross_entropy_weight=0.5)
    output = objective.forward(model, latents, tokens=tokens, readout=readout, generator=seed(3))
    x_t, t, _ = network.asked[-1]
    x_0 = path.eps_from_x1(x_t, latents.z, t)
    value = network(x_t, t).value
    target = latents.z if prediction == "x1" else path.velocity(latents.z, x_0, t)
    error = torch.stack([(value - target)[b][latents.mask[b]].square().mean() for b in range(B)])
    estimate = value if prediction == "x1" else path.x1_from_velocity(x_t, value, t)
    nats = readout.loss(estimate, tokens.ids, tokens.mask)
    torch.testing.assert_close(output.per_example, 2 * error + 0.5 * nats, check_dtype=False, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss, output.per_example.mean())
    torch.testing.assert_close(output.terms["squared_error"], error.mean(), check_dtype=False, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.terms["cross_entropy_nats"], nats.mean(), check_dtype=False)
    assert output.loss.requires_grad and not output.per_example.requires_grad
    assert (x_t[~latents.mask] == 0).all()


def test_own_logits_and_the_readout_give_one_cross_entropy_when_they_say_the_same(generator: torch.Generator) -> None:
    latents, tokens = batch(generator)
    readout = randomised(lambda: TransformerReadout(V, D, width=8, depth=1, num_heads=2))
    objective = FlowMatching(UniformTime(), regression_weight=0.0, cross_entropy_weight=1.0)
    through_readout, own = (
        objective.forward(
            FlowModel(network, linear_path(), "x1"), latents, tokens=tokens, readout=readout, generator=seed(1)
        )
        for network in (Stub(), Stub(readout))
    )
    torch.testing.assert_close(own.per_example, through_readout.per_example, check_dtype=False, rtol=1e-6, atol=1e-6)
    # And its own logits win over a readout that would say something else.
    other = objective.forward(
        FlowModel(Stub(readout), linear_path(), "x1"), latents, tokens=tokens, readout=readout_of(), generator=seed(1)
    )
    assert torch.equal(other.per_example, own.per_example)


def networks(path: Path) -> list[tuple[nn.Module, PredictionType]]:
    def categorical() -> CategoricalDenoiser:
        return CategoricalDenoiser(D, K, V, path, width=8, depth=1, num_heads=2, self_conditioning=True)

    own = randomised(categorical)
    own.set_codebook(normal((V, D), seed(9)), torch.zeros(V))
    plain = randomised(lambda: RegressionDenoiser(D, K, width=8, depth=1, num_heads=2, self_conditioning=True))
    return [(own, "x1"), (plain, "x1"), (plain, "velocity")]


@each_path
@pytest.mark.parametrize("which", [0, 1, 2], ids=["categorical", "regression_x1", "regression_velocity"])
def test_what_stands_at_padding_never_contributes(path: Path, which: int, generator: torch.Generator) -> None:
    network, prediction = networks(path)[which]
    readout = randomised(lambda: TransformerReadout(V, D, width=8, depth=1, num_heads=2))
    objective = FlowMatching(UniformTime(), cross_entropy_weight=1.0, self_conditioning_probability=1.0)
    latents, tokens = batch(generator)
    junk = Latents(torch.where(latents.mask[..., None], latents.z, 100.0), latents.mask)
    other = TokenBatch(torch.where(tokens.mask, tokens.ids, (tokens.ids + 1) % V), tokens.mask)
    model = FlowModel(network, path, prediction)
    one, two, three = (
        objective.forward(model, z, tokens=ids, readout=readout, generator=seed(number))
        for z, ids, number in ((latents, tokens, 2), (junk, other, 2), (latents, tokens, 3))
    )
    torch.testing.assert_close(two.per_example, one.per_example, rtol=0, atol=1e-9)
    assert not torch.equal(three.loss, one.loss), "another seed, another loss"


def test_the_same_seed_gives_the_same_loss(generator: torch.Generator) -> None:
    latents, tokens = batch(generator)
    objective = FlowMatching(UniformTime(), cross_entropy_weight=1.0, self_conditioning_probability=0.5)
    losses = [
        objective.forward(
            FlowModel(Stub(), linear_path(), "x1"), latents, tokens=tokens, readout=readout_of(), generator=seed(number)
        ).loss.item()
        for number in (4, 4, 5)
    ]
    assert losses[0] == losses[1] != losses[2]


@both_predictions
def test_the_share_of_fed_back_estimates_is_the_one_asked_for(
    prediction: PredictionType, generator: torch.Generator
) -> None:
    latents, tokens = batch(generator)
    objective = FlowMatching(UniformTime(), self_conditioning_probability=0.3)
    fed, steps = 0, 400
    for _ in range(steps):
        network = Stub()
        model = FlowModel(network, linear_path(), prediction)
        objective.forward(model, latents, tokens=tokens, readout=readout_of(), generator=generator)
        x_t, t, self_cond = network.asked[-1]
        if self_cond is not None:
            fed += 1
            assert len(network.asked) == 2 and not self_cond.requires_grad
            assert torch.equal(self_cond, model.denoise(x_t, t).detach())
        else:
            assert len(network.asked) == 1, "a step without feedback costs one evaluation"
    assert abs(fed / steps - 0.3) < 5 * (0.3 * 0.7 / steps) ** 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"regression_weight": 0.0},
        {"regression_weight": -1.0, "cross_entropy_weight": 2.0},
        {"cross_entropy_weight": -1.0},
        {"self_conditioning_probability": 50.0},
        {"self_conditioning_probability": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        FlowMatching(UniformTime(), **settings)
