"""Responses against closed forms, and their quadratic limit."""

import math

import pytest
import torch

from fewstep.diagnostics import CategoricalResponse, ContinuousResponse, response
from tests.diagnostics.decoders import ConstantReadout, LinearReadout, ScalingDecoder, SmoothReadout, normal

CATEGORICAL, CONTINUOUS = CategoricalResponse(), ContinuousResponse()


def test_local_response_of_a_linear_readout_is_its_fisher_information() -> None:
    decode = LinearReadout(normal(3, 7, 5), normal(3, 7, seed=1))
    z, u = normal(4, 5, seed=2), normal(4, 5, seed=3)
    fisher = decode.fisher(z)
    torch.testing.assert_close(CATEGORICAL.local(decode, z, u), torch.einsum("bn,bnm,bm->b", u, fisher, u))
    torch.testing.assert_close(CATEGORICAL.product(decode, z, u), torch.einsum("bnm,bm->bn", fisher, u))


def test_finite_divergence_of_two_tokens_is_the_textbook_one() -> None:
    decode = LinearReadout(torch.tensor([[[2.0], [0.0]]], dtype=torch.float64))
    z = torch.tensor([[0.3]], dtype=torch.float64)
    u = torch.ones_like(z)
    p, q = (1 / (1 + math.exp(-2 * (0.3 + r))) for r in (0.5, -0.5))

    def entropy(share: float) -> float:
        return -share * math.log(share) - (1 - share) * math.log(1 - share)

    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert CATEGORICAL.finite(decode, z, u, 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_small_radii_tend_to_the_quadratic_form_with_an_error_of_fourth_order() -> None:
    decode, z, u = SmoothReadout(6, 3, 5), normal(4, 6, seed=2), normal(4, 6, seed=3)
    local = CATEGORICAL.local(decode, z, u)
    errors = [(CATEGORICAL.finite(decode, z, u, r) / (r**2 / 2) / local - 1).abs().max() for r in (1e-2, 1e-3)]
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 50
    local = CONTINUOUS.local(decode, z, u)
    torch.testing.assert_close(CONTINUOUS.finite(decode, z, u, 1e-4) / 4e-8, local, rtol=1e-5, atol=0)


def test_continuous_response_of_a_diagonal_decoder_is_exact_at_any_radius() -> None:
    singular = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    decode, z, u = ScalingDecoder(singular), normal(2, 3), normal(2, 3, seed=1)
    expected = (singular * u).square().sum(1)
    torch.testing.assert_close(CONTINUOUS.local(decode, z, u), expected)
    torch.testing.assert_close(CONTINUOUS.finite(decode, z, u, 0.7), 4 * 0.49 * expected)
    torch.testing.assert_close(CONTINUOUS.product(decode, z, u), singular**2 * u)


def test_scope_one_counts_one_position_alone() -> None:
    decode, z, u = SmoothReadout(6, 3, 5), normal(4, 6, seed=2), normal(4, 6, seed=3)
    one = CategoricalResponse(scope="one")
    columns = [torch.full((4,), i) for i in range(3)]
    torch.testing.assert_close(
        sum(one.finite(decode, z, u, 0.1, i) for i in columns), CATEGORICAL.finite(decode, z, u, 0.1)
    )
    torch.testing.assert_close(sum(one.local(decode, z, u, i) for i in columns), CATEGORICAL.local(decode, z, u))
    torch.testing.assert_close(sum(one.product(decode, z, u, i) for i in columns), CATEGORICAL.product(decode, z, u))
    with pytest.raises(ValueError, match="position is None"):
        one.finite(decode, z, u, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_and_impossible_tokens_give_numbers(dtype: torch.dtype) -> None:
    weight = 1e4 * normal(2, 4, 3, dtype=torch.float32)
    bias = torch.tensor([[0.0, 0.0, 0.0, -math.inf]] * 2)

    def decode(z: torch.Tensor) -> torch.Tensor:
        return LinearReadout(weight, bias)(z).to(dtype)

    z, u = normal(3, 3, dtype=torch.float32), normal(3, 3, seed=1, dtype=torch.float32)
    for value in (CATEGORICAL.finite(decode, z, u, 0.5), CATEGORICAL.local(decode, z, u)):
        assert value.isfinite().all()
        assert (value >= 0).all()
    assert CATEGORICAL.product(decode, z, u).isfinite().all()
    assert (CATEGORICAL.finite(decode, z, u, 0.5) <= 2 * math.log(2) + 1e-12).all()


def test_a_token_whose_logit_has_no_derivative_because_it_is_impossible_does_not_count() -> None:
    def decode(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([z, torch.zeros_like(z), z.clamp(max=0).neg().log()], -1)  # log 0 for positive z

    z, u = normal(4, 1).abs(), torch.ones(4, 1, dtype=torch.float64)
    p = torch.sigmoid(z[:, 0])
    torch.testing.assert_close(CATEGORICAL.local(decode, z, u), p * (1 - p))


def test_a_constant_decoder_has_no_response() -> None:
    decode, z = ConstantReadout(normal(3, 5)), normal(2, 6)
    for kind in (CATEGORICAL, CONTINUOUS):
        assert not kind.finite(decode, z, z, 0.1).any()
        assert not kind.local(decode, z, z).any()
        assert not kind.product(decode, z, z).any()


def test_work_in_slices_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, z, u = SmoothReadout(6, 3, 5), normal(5, 6, seed=2), normal(5, 6, seed=3)
    whole = [CATEGORICAL.finite(decode, z, u, 0.1), CATEGORICAL.local(decode, z, u), CATEGORICAL.product(decode, z, u)]
    monkeypatch.setattr(response, "NUMBERS_AT_ONCE", 2 * 15)
    slices = [CATEGORICAL.finite(decode, z, u, 0.1), CATEGORICAL.local(decode, z, u), CATEGORICAL.product(decode, z, u)]
    for a, b in zip(whole, slices, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
