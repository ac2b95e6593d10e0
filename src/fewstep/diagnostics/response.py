"""How much a decoder's whole output changes along a direction (after arXiv:2606.30705).

Legend: z (B, ...) latents, u (B, ...) directions, p_i the distribution over V tokens at position i of L, y an output of
any shape, J the Jacobian of logits or output. ``finite`` is rho(z, u, r), symmetric about z; ``local`` is u'Fu, its
quadratic form for small r, with F the Fisher information of a categorical readout or J'J of a continuous decoder. All
outputs count: along its own gradient a single pixel, or one token's margin, has a ratio of exactly n in any decoder.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, directional, in_parts, pullback

NUMBERS_AT_ONCE = 2**20  # float64 work on logits goes in slices of this size: larger ones take twice the time on a CPU


class CategoricalResponse:
    """Response of a readout with logits (B, L, V): Jensen-Shannon divergence in nats, summed over positions.

    rho = sum_i JS(p_i(z + ru), p_i(z - ru)) = r^2/2 u'Fu + O(r^4), with u'Fu = sum_i Var_{p_i}((J u)_i). Both are
    computed in float64 from log-probabilities.
    """

    @torch.no_grad()
    def finite(self, decode: Decode, z: Tensor, u: Tensor, radius: float) -> Tensor:
        """rho (B,) float64 in nats; two evaluations of ``decode``."""

        def divergence(part: Decode, z: Tensor, u: Tensor) -> Tensor:
            return _in_slices(_jensen_shannon, part(z + radius * u), part(z - radius * u))

        return in_parts(decode, divergence, z, u)

    def local(self, decode: Decode, z: Tensor, u: Tensor) -> Tensor:
        """u'Fu (B,) float64, not divided by |u|^2; one forward-mode pass."""
        return in_parts(decode, lambda part, z, u: _in_slices(_variance, *directional(part, z, u)), z, u)

    def product(self, decode: Decode, z: Tensor, u: Tensor) -> Tensor:
        """F u = J' (diag p - pp') J u (B, ...); one forward-mode pass, one evaluation and one backward pass."""
        return in_parts(
            decode, lambda part, z, u: pullback(part, z, _in_slices(_centred, *directional(part, z, u))), z, u
        )


class ContinuousResponse:
    """Response of a decoder with outputs (B, ...): squared difference, summed over all outputs.

    rho = |y(z + ru) - y(z - ru)|^2 = 4 r^2 |J u|^2 + O(r^4). Methods and costs as in :class:`CategoricalResponse`.
    """

    @torch.no_grad()
    def finite(self, decode: Decode, z: Tensor, u: Tensor, radius: float) -> Tensor:
        """rho (B,) float64."""

        def distance(part: Decode, z: Tensor, u: Tensor) -> Tensor:
            return _in_slices(_squared_distance, part(z + radius * u), part(z - radius * u))

        return in_parts(decode, distance, z, u)

    def local(self, decode: Decode, z: Tensor, u: Tensor) -> Tensor:
        """|J u|^2 (B,) float64."""

        def squared(part: Decode, z: Tensor, u: Tensor) -> Tensor:
            change = directional(part, z, u)[1]
            return _in_slices(_squared_distance, change, torch.zeros_like(change))

        return in_parts(decode, squared, z, u)

    def product(self, decode: Decode, z: Tensor, u: Tensor) -> Tensor:
        """J'J u (B, ...)."""
        return in_parts(decode, lambda part, z, u: pullback(part, z, directional(part, z, u)[1]), z, u)


Response = CategoricalResponse | ContinuousResponse


def _in_slices(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """``function`` of ``a`` and ``b`` (B, ...), a few rows at a time: float64 copies of all logits can be large."""
    size = max(1, NUMBERS_AT_ONCE // max(1, math.prod(a.shape[1:])))
    return torch.cat([function(x.double(), y.double()) for x, y in zip(a.split(size), b.split(size), strict=True)])


def _jensen_shannon(logits: Tensor, others: Tensor) -> Tensor:
    log_p, log_q = logits.log_softmax(-1), others.log_softmax(-1)
    log_middle = torch.logaddexp(log_p, log_q) - math.log(2)
    divergence = _relative_entropy(log_p, log_middle) + _relative_entropy(log_q, log_middle)
    return (divergence / 2).sum(-1).clamp(min=0)


def _relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _variance(logits: Tensor, change: Tensor) -> Tensor:
    p, deviation = _deviation(logits, change)
    return (p * deviation.square()).flatten(1).sum(1)


def _centred(logits: Tensor, change: Tensor) -> Tensor:
    p, deviation = _deviation(logits, change)
    return p * deviation


def _deviation(logits: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and the change of the logits less its mean: never a difference of two large squares."""
    p = logits.softmax(-1)
    change = torch.where(p > 0, change, 0.0)  # the change of a logit of minus infinity is no number
    return p, change - (p * change).sum(-1, keepdim=True)


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).flatten(1).square().sum(1)
