"""One meaning of a denoiser, whatever its network predicts; promises of the plain network."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoisers import FlowModel, RegressionDenoiser
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
    x_t, previous, s = normal((4, 3, 2), generator), normal((4, 3, 2), generator), (1 + TIMES) / 2

    def everything(model: FlowModel) -> tuple[Tensor, Tensor, Tensor]:
        return (
            model.denoise(x_t, TIMES, self_cond=previous),
            model.velocity(x_t, TIMES, self_cond=previous),
            model.jump(x_t, TIMES, s, self_cond=previous),
        )

    for left, right in zip(everything(one), everything(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@each_path
def test_a_jump_to_where_we_are_stays_and_a_jump_to_data_is_the_estimate(
    path: Path, generator: torch.Generator
) -> None:
    model, x_t = FlowModel(Same(path, "x1"), path, "x1"), normal((4, 3, 2), generator)
    torch.testing.assert_close(model.jump(x_t, TIMES, TIMES), x_t, rtol=1e-9, atol=1e-9)
    at_data = model.jump(x_t, TIMES, torch.ones_like(TIMES))
    torch.testing.assert_close(at_data, model.denoise(x_t, TIMES), rtol=1e-9, atol=1e-9)


@each_path
def test_a_short_jump_follows_the_velocity(path: Path, generator: torch.Generator) -> None:
    model, x_t, step = FlowModel(Same(path, "x1"), path, "x1"), normal((4, 3, 2), generator), 1e-6
    slope = (model.jump(x_t, TIMES, TIMES + step) - x_t) / step
    torch.testing.assert_close(slope, model.velocity(x_t, TIMES), rtol=1e-3, atol=1e-4)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'eps', expected 'x1' or 'velocity'"):
        FlowModel(nn.Identity(), linear_path(), "eps")  # type: ignore[arg-type]


def build(**options: bool) -> RegressionDenoiser:
    return RegressionDenoiser(3, 8, width=8, depth=2, num_heads=2, **options)


def test_padding_changes_nothing_at_real_positions_of_the_plain_network(generator: torch.Generator) -> None:
    denoiser = randomised(lambda: build(self_conditioning=True))
    x_t, t, previous = normal((2, 5, 3), generator), torch.tensor([0.3, 0.6]), normal((2, 5, 3), generator)
    junk = 30 * normal((2, 2, 3, 3), generator)
    padded = denoiser(
        torch.cat([x_t, junk[0]], 1), t, mask=first([5, 5], 8), self_cond=torch.cat([previous, junk[1]], 1)
    )
    alone = denoiser(x_t, t, self_cond=previous)
    torch.testing.assert_close(padded.value[:, :5], alone.value, rtol=0, atol=1e-9)
    assert alone.value.std() > 0.1


def test_the_plain_network_tells_positions_apart_and_refuses_more_than_it_has(generator: torch.Generator) -> None:
    denoiser, t = randomised(build), torch.tensor([0.4])
    same = normal((1, 1, 3), generator).expand(1, 4, 3)
    assert denoiser(same, t).value.std(1).max() > 1e-2
    with pytest.raises(ValueError, match=r"9 latent positions.*built for 8"):
        denoiser(normal((1, 9, 3), generator), t)


def test_self_conditioning_reads_the_earlier_estimate_and_none_as_zero(generator: torch.Generator) -> None:
    denoiser = randomised(lambda: build(self_conditioning=True))
    x_t, t = normal((1, 4, 3), generator), torch.tensor([0.4])
    assert torch.equal(denoiser(x_t, t).value, denoiser(x_t, t, self_cond=0 * x_t).value)
    assert (denoiser(x_t, t, self_cond=x_t).value - denoiser(x_t, t).value).abs().max() > 1e-3
