"""How much a decoder's whole output changes along a direction (after arXiv:2606.30705).

Legend: z (B, ...) latents, u (B, ...) directions, y an output of any shape, J its Jacobian in z, p_i the distribution
over V tokens at position i. rho(z, u, r) is the response, symmetric about z; u'Fu its quadratic form for small r. All
outputs count: along its own gradient a single pixel, or one token's margin, has a ratio of exactly n in any decoder.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, directional, in_parts, pullback

NUMBERS_AT_ONCE = 2**20  # float64 work on logits goes in slices of this size: larger ones take twice the time on a CPU

Pairwise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Response:
    """The response of a kind of output, by three functions of float64 tensors (B, ...).

    ``distance`` of two outputs (B,); ``quadratic`` of y and J u: u'Fu (B,); ``weights`` of y and J u: w with F u = J'w.
    """

    distance: Pairwise
    quadratic: Pairwise
    weights: Pairwise

    @torch.no_grad()
    def finite(self, decode: Decode, z: Tensor, u: Tensor, radius: float) -> Tensor:
        """rho(z, u, r), the distance of y(z + ru) and y(z - ru): (B,) float64; two evaluations of ``decode``."""

        def between(part: Decode, z: Tensor, u: Tensor) -> Tensor:
            return _in_slices(self.distance, part(z + radius * u), part(z - radius * u))

        return in_parts(decode, between, z, u)

    def local(self, decode: Decode, z: Tensor, u: Tensor) -> Tensor:
        """u'Fu (B,) float64, not divided by |u|^2; one forward-mode pass."""
        return in_parts(decode, lambda part, z, u: _in_slices(self.quadratic, *directional(part, z, u)), z, u)

    def product(self, decode: Decode, z: Tensor, u: Tensor) -> Tensor:
        """F u (B, ...); one forward-mode pass, one evaluation and one backward pass."""

        def product(part: Decode, z: Tensor, u: Tensor) -> Tensor:
            return pullback(part, z, _in_slices(self.weights, *directional(part, z, u)))[1]

        return in_parts(decode, product, z, u)


def _in_slices(function: Pairwise, a: Tensor, b: Tensor) -> Tensor:
    """``function`` of ``a`` and ``b`` (B, ...), a few rows at a time: float64 copies of all logits can be large."""
    size = max(1, NUMBERS_AT_ONCE // max(1, a[0].numel()))
    return torch.cat([function(x.double(), y.double()) for x, y in zip(a.split(size), b.split(size), strict=True)])


def _jensen_shannon(logits: Tensor, others: Tensor) -> Tensor:
    log_p, log_q = logits.log_softmax(-1), others.log_softmax(-1)
    log_middle = torch.logaddexp(log_p, log_q) - math.log(2)
    divergence = _relative_entropy(log_p, log_middle) + _relative_entropy(log_q, log_middle)
    return (divergence / 2).sum(-1).clamp(min=0)


def _relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _deviation(logits: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and the change of the logits less its mean: never a difference of two large squares."""
    p = logits.softmax(-1)
    change = torch.where(p > 0, change, 0.0)  # the change of a logit of minus infinity is no number
    return p, change - (p * change).sum(-1, keepdim=True)


def _variance(logits: Tensor, change: Tensor) -> Tensor:
    p, deviation = _deviation(logits, change)
    return (p * deviation.square()).flatten(1).sum(1)


def _centred(logits: Tensor, change: Tensor) -> Tensor:
    p, deviation = _deviation(logits, change)
    return p * deviation


def _squared_norm(a: Tensor) -> Tensor:
    return a.flatten(1).square().sum(1)


CATEGORICAL = Response(_jensen_shannon, _variance, _centred)
"""A readout with logits (B, L, V): Jensen-Shannon divergence in nats, summed over positions.

rho = sum_i JS(p_i(z + ru), p_i(z - ru)) = r^2/2 u'Fu + O(r^4), with the Fisher information
u'Fu = sum_i Var_{p_i}((J u)_i) and w = (diag p - pp') J u; all from log-probabilities.
"""
CONTINUOUS = Response(
    lambda a, b: _squared_norm(a - b), lambda y, change: _squared_norm(change), lambda y, change: change
)
"""A decoder with outputs (B, ...): rho = |y(z + ru) - y(z - ru)|^2 = 4 r^2 u'Fu + O(r^4), with F = J'J."""
