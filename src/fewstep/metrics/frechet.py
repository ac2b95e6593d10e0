"""Frechet distance of two sets of samples (N, F), apart because it is a metric of any features, not of images alone."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """``mean`` (F,) and ``covariance`` (F, F) of samples, in float64 on the CPU."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of ``features`` (N, ...), whose trailing axes are one vector.

    Raises ``ValueError`` for fewer than 2 samples and for numbers that are not finite.
    """
    rows = features.detach().double().cpu().reshape(len(features), -1)
    if len(rows) < 2 or not bool(rows.isfinite().all()):
        raise ValueError(f"{len(rows)} samples: expected at least 2, and finite numbers only")
    mean = rows.mean(0)
    centred = rows - mean
    return Moments(mean, centred.T @ centred / (len(rows) - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2), the square of the Frechet distance of two Gaussians.

    It is called distance as everywhere (arXiv:1706.08500, eq. 6). The estimate is biased upwards, the more the fewer
    the samples for their F, so it compares only with another of as many samples. Never negative.
    """
    root = _square_root(first.covariance)
    cross = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * cross
    return float(((first.mean - second.mean).square().sum() + spread).clamp(min=0))


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance (F, F); what rounding made negative counts as 0."""
    values, axes = torch.linalg.eigh(covariance)
    return (axes * values.clamp(min=0).sqrt()) @ axes.T
