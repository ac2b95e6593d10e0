"""How far a latent is from another token, to first order.

Legend: B examples, P positions, L tokens, V vocabulary, n numbers in one latent. m = l_a - max_{b != a} l_b is the
margin of the leading token a at a position, l its logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, in_parts, norms, pullback, require_positions, rms, unit_rows
from fewstep.diagnostics.result import Axes, Result, Row, Series, mean_estimate, quantile_estimate
from fewstep.shapes import expand_like

QUANTILES = (0.01, 0.1, 0.5, 0.9)
NUM_BARS = 30


@dataclass(frozen=True)
class Margins:
    """Margins ``value`` (B, P) float64, not negative, and their gradients (B, P, ...) with respect to the latent.

    With a vocabulary of one token there is no runner-up: m is infinite and its gradient 0.
    """

    value: Tensor
    gradient: Tensor

    @property
    def gradient_norm(self) -> Tensor:
        """|grad m| (B, P) float64."""
        return norms(self.gradient.flatten(0, 1)).unflatten(0, self.value.shape)

    @property
    def direction(self) -> Tensor:
        """The normal grad m / |grad m| (B, P, ...), away from the runner-up; zeros where the gradient is zero."""
        return unit_rows(self.gradient.flatten(0, 1)).unflatten(0, self.value.shape)

    @property
    def distance(self) -> Tensor:
        """m / |grad m| (B, P) float64, to first order the distance to the boundary; infinite at a zero gradient."""
        return torch.where(self.gradient_norm > 0, self.value / self.gradient_norm, torch.inf)


def leader_margin(
    decode: Decode, z: Tensor, position: Tensor, leader: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Margin (B,) of token ``leader`` (None: of the argmax) at ``position`` (B,), its gradient (B, ...), the leader
    (B,), and the smallest difference of two logits of this size in the decoder's precision (B,).

    The margin is negative where another token leads. One evaluation of ``decode`` and one backward pass.
    """
    seen: dict[str, Tensor] = {}

    def margin(x: Tensor) -> Tensor:
        # Autograd keeps the indices for the backward pass, so create them here, outside the caller's inference mode.
        rows = torch.arange(len(x), device=x.device)
        logits = decode(x)[rows, position.to(x.device).clone()]
        a = logits.argmax(-1) if leader is None else leader.clone()
        size = logits.detach()[rows, a].double().abs()
        seen.update(leader=a.detach(), resolution=size * torch.finfo(logits.dtype).eps)
        if logits.shape[-1] == 1:
            return logits[:, 0] * 0 + torch.inf
        others = logits.detach().scatter(1, a[:, None], -torch.inf)
        return logits[rows, a].double() - logits[rows, others.argmax(-1)].double()

    value, gradient = pullback(margin, z)
    known = value.isfinite() & gradient.flatten(1).isfinite().all(1)
    gradient = torch.where(expand_like(known, z), gradient, 0.0)
    return value.double(), gradient, seen["leader"], seen["resolution"]


def margins(decode: Decode, z: Tensor, positions: Tensor) -> Margins:
    """Margins at ``positions`` (B, P) of latents ``z`` (B, ...); ``decode`` gives logits (B, L, V).

    Costs P evaluations of ``decode`` and P backward passes.
    """
    require_positions(z, positions)
    values, gradients, *_ = zip(
        *(in_parts(decode, leader_margin, z, column, None) for column in positions.unbind(1)), strict=True
    )
    return Margins(torch.stack(values, 1), torch.stack(gradients, 1))


def boundary_distance(
    measured: Margins, z: Tensor, *, generator: torch.Generator, name: str = "boundary_distance"
) -> Result:
    """Quantiles of m / |grad m| over rms(z), z (B, ...) the latents of the margins: how far data sits from a flip.

    Rows ``NAME_p01``, ``_p10``, ``_p50`` and ``_p90`` in rms; the curve is a histogram. Points with a zero gradient are
    infinitely far: they are left out and counted.
    """
    return _quantiles(name, measured.distance / (rms(z) or 1.0), generator)


def boundary_width(measured: Margins, z: Tensor, *, generator: torch.Generator) -> Result:
    """Quantiles of 1 / |grad m| over rms(z): the distance over which the margin changes by one nat."""
    return _quantiles("boundary_width", 1 / measured.gradient_norm / (rms(z) or 1.0), generator)


def _quantiles(name: str, values: Tensor, generator: torch.Generator) -> Result:
    values = values.cpu()
    finite = values.isfinite()
    num_points, num_infinite = int(finite.sum()), int((~finite).sum())
    note = f"{num_points} points"
    if num_infinite:
        note += f"; {num_infinite} more have a zero gradient: infinite, left out"
    mean = mean_estimate(values, finite, generator)
    estimates = {q: quantile_estimate(values, finite, q, generator) for q in QUANTILES}
    return Result(
        name,
        tuple(Row(f"{name}_p{round(100 * q):02d}", estimate, "rms", note) for q, estimate in estimates.items()),
        {"histogram": _histogram(values[finite], name)},
        Axes(name.replace("_", " ").capitalize(), f"{name} (rms)", "share of points", kind="bars"),
        {"mean": mean, "num_points": num_points, "num_infinite": num_infinite},
    )


def _histogram(values: Tensor, label: str) -> Series:
    if not len(values):
        return Series(label, (), ())
    top = float(values.max()) or 1.0
    counts = torch.histc(values, NUM_BARS, 0.0, top)
    middles = (torch.arange(NUM_BARS, dtype=torch.float64) + 0.5) * top / NUM_BARS
    return Series(label, tuple(middles.tolist()), tuple((counts / len(values)).tolist()))
