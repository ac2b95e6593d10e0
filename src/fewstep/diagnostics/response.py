"""How much a decoder's output changes along a direction. B examples, L tokens, V vocabulary; outputs of any shape.

``finite`` is the response rho(z, u, r), symmetric about z; ``local`` is its quadratic form u'Fu for small r, with F
the Fisher information of a categorical readout or J'J of a continuous decoder. The whole output counts, not one token
or pixel: along its own gradient any smooth scalar has a ratio of exactly n (this project's definition, after
arXiv:2606.30705).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fewstep.diagnostics.derivatives import Decode, directional, pullback
from fewstep.diagnostics.parts import in_parts

NUMBERS_AT_ONCE = 2**20  # float64 work on logits goes in slices of this size: larger ones take twice the time on a CPU


class Response(Protocol):
    """What is measured of a decoder. ``scope`` tells which outputs count."""

    @property
    def scope(self) -> Literal["all", "one"]:
        """All outputs, or one token."""
        ...

    def finite(self, decode: Decode, z: Tensor, u: Tensor, radius: float, position: Tensor | None = None) -> Tensor:
        """rho(z, u, r) (B,) float64 for ``z`` and unit ``u`` (B, ...); two evaluations of ``decode``."""
        ...

    def local(self, decode: Decode, z: Tensor, u: Tensor, position: Tensor | None = None) -> Tensor:
        """u'Fu (B,) float64, not divided by |u|^2; one forward-mode pass."""
        ...

    def product(self, decode: Decode, z: Tensor, u: Tensor, position: Tensor | None = None) -> Tensor:
        """F u (B, ...); one forward-mode pass, one evaluation and one backward pass."""
        ...


@dataclass(frozen=True)
class CategoricalResponse:
    """Of a readout with logits (B, L, V): Jensen-Shannon divergence in nats, summed over positions.

    rho = sum_i JS(p_i(z + ru), p_i(z - ru)) = r^2/2 u'Fu + O(r^4), and u'Fu = sum_i Var_{p_i}((J u)_i). Both are
    computed in float64 from log-probabilities. ``scope`` "one" counts the token ``position`` (B,) alone; that is never
    compared between a text readout and another decoder. Raises ValueError where it is needed and missing.
    """

    scope: Literal["all", "one"] = "all"

    @torch.no_grad()
    def finite(self, decode: Decode, z: Tensor, u: Tensor, radius: float, position: Tensor | None = None) -> Tensor:
        """The divergence between ``z + radius u`` and ``z - radius u`` (B,) float64, nats."""

        def found(part: Decode, z: Tensor, u: Tensor, position: Tensor | None) -> Tensor:
            ahead, behind = (self._counted(part(z + sign * radius * u), position) for sign in (1, -1))
            return _in_slices(_jensen_shannon, ahead, behind)

        return in_parts(decode, found, z, u, position)

    def local(self, decode: Decode, z: Tensor, u: Tensor, position: Tensor | None = None) -> Tensor:
        """The Fisher information along ``u`` (B,) float64, nats per squared unit of the latent."""

        def found(part: Decode, z: Tensor, u: Tensor, position: Tensor | None) -> Tensor:
            logits, change = directional(part, z, u)
            return _in_slices(_variance, self._counted(logits, position), self._counted(change, position))

        return in_parts(decode, found, z, u, position)

    def product(self, decode: Decode, z: Tensor, u: Tensor, position: Tensor | None = None) -> Tensor:
        """J' (diag p - pp') J u (B, ...)."""
        return in_parts(decode, self._product, z, u, position)

    def _product(self, decode: Decode, z: Tensor, u: Tensor, position: Tensor | None) -> Tensor:
        logits, change = directional(decode, z, u)
        weights = _in_slices(_centred, logits, change)
        if self.scope == "one":
            here = torch.arange(logits.shape[1], device=z.device) == self._needed(position, z)[:, None]
            weights = weights * here[..., None]
        return pullback(decode, z, weights)

    def _counted(self, logits: Tensor, position: Tensor | None) -> Tensor:
        if self.scope == "all":
            return logits
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self._needed(position, logits)].unsqueeze(1)

    def _needed(self, position: Tensor | None, like: Tensor) -> Tensor:
        if position is None:
            raise ValueError('position is None: scope "one" needs the token position of each example, pass (B,) int64.')
        return position.to(like.device)


@dataclass(frozen=True)
class ContinuousResponse:
    """Of a decoder with outputs (B, ...): squared difference, summed over all outputs. It ignores ``position``.

    rho = |y(z + ru) - y(z - ru)|^2 = 4 r^2 |J u|^2 + O(r^4).
    """

    @property
    def scope(self) -> Literal["all", "one"]:
        """Always all outputs."""
        return "all"

    @torch.no_grad()
    def finite(self, decode: Decode, z: Tensor, u: Tensor, radius: float, position: Tensor | None = None) -> Tensor:
        """The squared distance of the outputs at ``z + radius u`` and ``z - radius u`` (B,) float64."""

        def found(part: Decode, z: Tensor, u: Tensor) -> Tensor:
            return _in_slices(_squared_distance, part(z + radius * u), part(z - radius * u))

        return in_parts(decode, found, z, u)

    def local(self, decode: Decode, z: Tensor, u: Tensor, position: Tensor | None = None) -> Tensor:
        """|J u|^2 (B,) float64."""

        def found(part: Decode, z: Tensor, u: Tensor) -> Tensor:
            change = directional(part, z, u)[1]
            return _in_slices(_squared_distance, change, torch.zeros_like(change))

        return in_parts(decode, found, z, u)

    def product(self, decode: Decode, z: Tensor, u: Tensor, position: Tensor | None = None) -> Tensor:
        """J'J u (B, ...)."""
        return in_parts(decode, lambda part, z, u: pullback(part, z, directional(part, z, u)[1]), z, u)


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
