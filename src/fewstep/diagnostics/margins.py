"""How far a latent is from another token, to first order. B examples, P positions, L tokens, V vocabulary."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.derivatives import Decode, value_and_gradient
from fewstep.diagnostics.geometry import norms, rms, unit_rows
from fewstep.diagnostics.parts import in_parts
from fewstep.diagnostics.results import (
    DiagnosticRow,
    Estimate,
    Picture,
    Series,
    mean_estimate,
    quantile_estimate,
)

QUANTILES = (0.01, 0.1, 0.5, 0.9)
NUM_BARS = 30


@dataclass(frozen=True)
class Margins:
    """Lead of the first token over the second at P positions, and its gradient.

    ``value`` (B, P) float64, m = l_a - max of the other logits, not negative; ``gradient`` (B, P, ...) with respect
    to the latent. With a single token in the vocabulary there is no runner-up: m is infinite and its gradient 0.
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
        """m / |grad m| (B, P) float64, to first order the way to the boundary; infinite at a zero gradient."""
        return torch.where(self.gradient_norm > 0, self.value / self.gradient_norm, torch.inf)


@dataclass(frozen=True)
class LeaderMargin:
    """One position an example: ``value`` (B,), ``gradient`` (B, ...), ``leader`` (B,) ids, ``resolution`` (B,).

    ``value`` is negative where another token leads. ``resolution`` is the least difference of two logits of this size
    in the precision that the decoder computes in.
    """

    value: Tensor
    gradient: Tensor
    leader: Tensor
    resolution: Tensor


def leader_margin(decode: Decode, z: Tensor, position: Tensor, leader: Tensor | None = None) -> LeaderMargin:
    """m = l_a - max_{b != a} l_b at token ``position`` (B,) of each latent ``z`` (B, ...), a the ``leader`` (B,).

    Without ``leader`` it is the token of the highest logit. One evaluation of ``decode`` and one backward pass.
    """
    return LeaderMargin(*in_parts(decode, _leader_margin, z, position, leader))


def _leader_margin(
    decode: Decode, z: Tensor, position: Tensor, leader: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    seen: dict[str, Tensor] = {}

    def margin(x: Tensor) -> Tensor:
        # Indices are kept for the backward pass, so they are made here, outside the caller's inference mode.
        rows = torch.arange(len(x), device=x.device)
        logits = decode(x)[rows, position.to(x.device).clone()]
        a = logits.argmax(-1) if leader is None else leader
        seen.update(leader=a.detach(), top=logits.detach()[rows, a].double().abs())
        seen["step"] = seen["top"] * torch.finfo(logits.dtype).eps
        if logits.shape[-1] == 1:
            return logits[:, 0] * 0 + torch.inf
        others = logits.detach().scatter(1, a[:, None], -torch.inf)
        return logits[rows, a].double() - logits[rows, others.argmax(-1)].double()

    value, gradient = value_and_gradient(margin, z)
    known = value.isfinite() & gradient.flatten(1).isfinite().all(1)
    gradient = torch.where(known.reshape((-1,) + (1,) * (z.ndim - 1)), gradient, 0.0)
    return value.double(), gradient, seen["leader"], seen["step"]


def margins(decode: Decode, z: Tensor, positions: Tensor) -> Margins:
    """Margins and their gradients at ``positions`` (B, P) of the latents ``z`` (B, ...); ``decode`` gives (B, L, V).

    Costs P evaluations of ``decode`` and P backward passes. Raises ValueError where ``positions`` does not fit ``z``.
    """
    require_positions(z, positions)
    found = [leader_margin(decode, z, column) for column in positions.unbind(1)]
    return Margins(torch.stack([one.value for one in found], 1), torch.stack([one.gradient for one in found], 1))


def require_positions(z: Tensor, positions: Tensor) -> None:
    """Raise ValueError unless ``positions`` is (B, P) whole numbers for ``z`` (B, ...), B and P at least 1."""
    if positions.ndim != 2 or len(positions) != len(z) or positions.numel() == 0 or positions.is_floating_point():
        raise ValueError(
            f"positions have shape {tuple(positions.shape)} and type {positions.dtype} for {len(z)} latents: "
            "expected (B, P) int64 with one row a latent, draw them with draw_positions."
        )


@dataclass(frozen=True)
class BoundaryScale:
    """Boundary distances or widths in units of the latents' rms; ``name`` is the first word of the rows.

    This project's definition, after arXiv:2606.30705. ``mean`` and ``quantiles`` (pairs of q and its estimate) are over
    the ``num_points`` points of finite value; ``num_infinite`` points have a zero gradient and are left out.
    ``histogram`` holds middles of bars and the share of points in each.
    """

    name: str
    mean: Estimate
    quantiles: tuple[tuple[float, Estimate], ...]
    num_points: int
    num_infinite: int
    histogram: Series

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """The quantiles, ``boundary_distance_p01`` and so on."""
        note = f"{self.num_points} points"
        if self.num_infinite:
            note += f"; {self.num_infinite} more have a zero gradient: infinite, left out"
        return tuple(DiagnosticRow(f"{self.name}_p{round(100 * q):02d}", e, "rms", note) for q, e in self.quantiles)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture | None:
        """A histogram, where there is a finite point."""
        if not self.histogram.x:
            return None
        title = self.name.replace("_", " ").capitalize()
        return Picture(title, f"{self.name} (rms)", "share of points", (self.histogram,), kind="bars")


def boundary_distance(
    decode: Decode,
    z: Tensor,
    positions: Tensor,
    *,
    generator: torch.Generator,
    measured: Margins | None = None,
    name: str = "boundary_distance",
) -> BoundaryScale:
    """m / |grad m| over rms(z) at ``positions`` (B, P) of data latents ``z`` (B, ...): how far data sits from a flip.

    ``decode`` gives logits (B, L, V). ``measured``, where given, are the margins of these very points and spare the
    evaluations. Intervals come from resampling examples with ``generator``. This project's definition, after
    arXiv:2606.30705. Raises ValueError where ``positions`` does not fit ``z``.
    """
    measured = margins(decode, z, positions) if measured is None else measured
    return _scale(name, measured.distance / (rms(z) or 1.0), generator)


def boundary_width(
    decode: Decode,
    z: Tensor,
    positions: Tensor,
    *,
    generator: torch.Generator,
    measured: Margins | None = None,
    name: str = "boundary_width",
) -> BoundaryScale:
    """1 / |grad m| over rms(z): the way in which the lead of the first token changes by one nat.

    Arguments, source and errors as of :func:`boundary_distance`.
    """
    measured = margins(decode, z, positions) if measured is None else measured
    return _scale(name, 1 / measured.gradient_norm / (rms(z) or 1.0), generator)


def _scale(name: str, values: Tensor, generator: torch.Generator) -> BoundaryScale:
    values = values.cpu()
    finite = values.isfinite()
    return BoundaryScale(
        name=name,
        mean=mean_estimate(values, finite, generator),
        quantiles=tuple((q, quantile_estimate(values, finite, q, generator)) for q in QUANTILES),
        num_points=int(finite.sum()),
        num_infinite=int((~finite).sum()),
        histogram=_histogram(values[finite], name),
    )


def _histogram(values: Tensor, label: str) -> Series:
    if not len(values):
        return Series(label, (), ())
    top = float(values.max()) or 1.0
    counts = torch.histc(values, NUM_BARS, 0.0, top)
    middles = (torch.arange(NUM_BARS, dtype=torch.float64) + 0.5) * top / NUM_BARS
    return Series(label, tuple(middles.tolist()), tuple((counts / len(values)).tolist()))
