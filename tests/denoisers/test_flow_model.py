"""One meaning of a denoiser, whatever its network predicts; promises of the plain network."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoisers import CategoricalDenoiser, FlowModel, RegressionDenoiser
from fewstep.paths import Path, linear_path, variance_preserving_path
from tests.nn.builders import first, normal, randomised
from tests.toys import MixingModel, ToyNetwork

each_path = pytest.mark.parametrize(
    "path", [linear_path(), variance_preserving_path()], ids=["linear", "variance_preserving"]
)
TIMES = torch.tensor([0.0, 0.2, 0.5, 0.9], dtype=torch.float64)


class Same(ToyNetwork):
    """One function of the state and the self-conditioning, told as x_1 or as the velocity that belongs to it."""

    def __init__(self, path: Path, prediction: str) -> None:
        super().__init__()
        self.toy = MixingModel(path)
        self.prediction = prediction

    def value(self, x_t: Tensor, t: Tensor, s: Tensor | None, mask: Tensor | None, self_cond: Tensor | None) -> Tensor:
        x1_hat = self.toy.denoise(x_t, t, self_cond=self_cond)
        return x1_hat if self.prediction == "x1" else self.toy.velocity_of(x_t, x1_hat, t)


@each_path
def test_x1_and_velocity_networks_of_one_function_agree_everywhere(path: Path, generator: torch.Generator) -> None:
    one, other = FlowModel(Same(path, "x1"), path, "x1"), FlowModel(Same(path, "velocity"), path, "velocity")
    x_t, previous = normal((4, 3, 2), generator), normal((4, 3, 2), generator)
    for ask in (FlowModel.denoise, FlowModel.velocity):
        left, right = (ask(model, x_t, TIMES, self_cond=previous) for model in (one, other))
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'eps', expected 'x1' or 'velocity'"):
        FlowModel(nn.Identity(), linear_path(), "eps")  # type: ignore[arg-type]


def build(**options: bool) -> RegressionDenoiser:
    return RegressionDenoiser(3, 8, width=8, depth=2, num_heads=2, **options)


def categorical(**options: bool) -> CategoricalDenoiser:
    denoiser = CategoricalDenoiser(3, 8, 4, width=8, depth=2, num_heads=2, **options)
    denoiser.set_codebook(normal((4, 3), torch.Generator().manual_seed(5)), torch.zeros(4))
    return denoiser


@pytest.mark.parametrize("make", [build, categorical])
def test_padding_changes_nothing_at_real_positions_and_neighbours_do(
    make: Callable[..., RegressionDenoiser], generator: torch.Generator
) -> None:
    denoiser = randomised(lambda: make(self_conditioning=True))
    x_t, t, previous = normal((2, 5, 3), generator), torch.tensor([0.3, 0.6]), normal((2, 5, 3), generator)
    junk, real = 30 * normal((2, 2, 3, 3), generator), first([5, 5], 8)
    more, more_previous = torch.cat([x_t, junk[0]], 1), torch.cat([previous, junk[1]], 1)
    padded = denoiser(more, t, mask=real, self_cond=more_previous).value[:, :5]
    alone = denoiser(x_t, t, self_cond=previous).value
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-9)
    assert (denoiser(more, t, self_cond=more_previous).value[:, :5] - alone).abs().max() > 1e-3


def test_the_plain_network_tells_positions_apart_and_refuses_more_than_it_has(generator: torch.Generator) -> None:
    denoiser, t = randomised(build), torch.tensor([0.4])
    same = normal((1, 1, 3), generator).expand(1, 4, 3)
    assert denoiser(same, t).value.std(1).max() > 1e-2
    with pytest.raises(ValueError, match=r"9 latent positions.*built for 8"):
        denoiser(normal((1, 9, 3), generator), t)


@pytest.mark.parametrize("make", [build, categorical])
def test_self_conditioning_reads_the_earlier_estimate_and_none_as_zero(
    make: Callable[..., RegressionDenoiser], generator: torch.Generator
) -> None:
    denoiser = randomised(lambda: make(self_conditioning=True))
    x_t, t = normal((1, 4, 3), generator), torch.tensor([0.4])
    assert torch.equal(denoiser(x_t, t).value, denoiser(x_t, t, self_cond=0 * x_t).value)
    assert (denoiser(x_t, t, self_cond=x_t).value - denoiser(x_t, t).value).abs().max() > 1e-4
