"""The Frechet distance: closed forms, the libraries that have it, and what it must not depend on."""

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from fewstep.metrics.frechet import Moments, frechet_distance, moments


def gaussians(seed: int, features: int = 6) -> Tensor:
    """Correlated samples (200, F) in float64."""
    noise = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=noise, dtype=torch.float64)
    return torch.randn(200, features, generator=noise, dtype=torch.float64) @ mixing + seed


def test_gaussians_of_one_axis_system_have_the_closed_form() -> None:
    # Independent axes: the sum over them of (m - m')^2 + (s - s')^2.
    means = torch.tensor([[0.0, 1.0, -2.0], [0.5, 1.0, 1.0]]).double()
    deviations = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.5, 1.0]]).double()
    axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    first, second = (Moments(axes @ m, (axes * s**2) @ axes.T) for m, s in zip(means, deviations, strict=True))
    expected = float((means.diff(dim=0).square() + deviations.diff(dim=0).square()).sum())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_it_agrees_with_the_matrix_root_of_scipy_and_is_symmetric() -> None:
    samples = gaussians(1), gaussians(2)
    first, second = map(moments, samples)
    torch.testing.assert_close(first.covariance, torch.cov(samples[0].T), rtol=1e-9, atol=1e-9)
    root = sqrtm(first.covariance.numpy() @ second.covariance.numpy()).real
    traces = float((first.covariance + second.covariance).trace()) - 2 * float(root.trace())
    expected = float((first.mean - second.mean).square().sum()) + traces
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


class Flat(nn.Module):
    """Pixels as features, in the form that torchmetrics asks for."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_it_agrees_with_torchmetrics() -> None:
    noise = torch.Generator().manual_seed(0)
    real, generated = torch.rand(60, 3, 2, 2, generator=noise), torch.rand(50, 3, 2, 2, generator=noise) ** 2
    theirs = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    theirs.update(real, real=True)
    theirs.update(generated, real=False)
    assert frechet_distance(moments(real), moments(generated)) == pytest.approx(float(theirs.compute()), rel=1e-4)


@pytest.mark.parametrize("features", [torch.zeros(1, 3), torch.full((3, 2), torch.nan)])
def test_what_has_no_moments_is_refused(features: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 2, and finite"):
        moments(features)


def test_it_is_zero_for_equal_samples_also_where_they_span_less_than_the_features() -> None:
    few = moments(gaussians(1)[:4])
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(few, Moments(few.mean + 1, few.covariance)) == pytest.approx(6, abs=1e-5)
