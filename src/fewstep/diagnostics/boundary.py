"""Points at which sharpness is measured, with a direction each.

Legend: B examples, P points per example, L tokens, V vocabulary; latents (B, ...), n numbers in one.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import (
    Decode,
    in_parts,
    norms,
    random_directions,
    read_tokens,
    require_positions,
    unit_rows,
)
from fewstep.diagnostics.margins import Margins, leader_margin
from fewstep.diagnostics.response import Response
from fewstep.shapes import expand_like

CLOSE_NATS = 1e-3
"""The margin at which two tokens are level."""


@dataclass(frozen=True)
class BoundaryPoints:
    """Points ``z`` (B, P, ...) with a unit ``direction`` (B, P, ...) each, zero where a point is not ``accepted``.

    ``accepted`` (B, P) bool. ``kind`` is the kind of direction, ``at`` the kind of point.
    """

    z: Tensor
    direction: Tensor
    accepted: Tensor
    kind: Literal["normal", "segment", "worst"]
    at: Literal["boundary", "midpoint", "data"]

    def columns(self) -> list[tuple[Tensor, Tensor]]:
        """``z`` and ``direction`` (B, ...) of each of the P points."""
        return list(zip(self.z.unbind(1), self.direction.unbind(1), strict=True))


def normal_boundary(decode: Decode, z: Tensor, positions: Tensor, *, max_steps: int = 20) -> BoundaryPoints:
    """Points where the leading token at ``positions`` (B, P) is about to flip, with direction n_b = grad m / |grad m|.

    Newton steps from ``z`` (B, ...) along the gradient of m = l_a - max_{b != a} l_b, a the leader at ``z`` and the
    runner-up b chosen again in each step (DeepFool, arXiv:1511.04599), until |m| <= ``CLOSE_NATS``, or two steps of the
    logits' own precision where that is coarser. Not accepted: points that have not converged after ``max_steps``, and
    zero gradients. A step costs an evaluation of ``decode``, which gives logits (B, L, V), and a backward pass.
    """
    require_positions(z, positions)
    columns = [_descend(decode, z, column, max_steps) for column in positions.unbind(1)]
    points, directions, accepted = (torch.stack(parts, 1) for parts in zip(*columns, strict=True))
    return BoundaryPoints(points, directions, accepted, "normal", "boundary")


def _descend(decode: Decode, z: Tensor, position: Tensor, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    x, leader = z.detach().clone(), None
    for step in range(max_steps + 1):
        value, gradient, leader, resolution = in_parts(decode, leader_margin, x, position, leader)
        slope = norms(gradient)
        arrived = value.abs() <= (2 * resolution).clamp(min=CLOSE_NATS)
        moving = ~arrived & (slope > 0)
        if step == max_steps or not bool(moving.any()):
            break
        length = torch.where(moving, value / slope.where(moving, 1.0).square(), 0.0)
        ahead = x - (expand_like(length, x) * gradient).to(x.dtype)
        x = torch.where(ahead.isfinite(), ahead, x)  # next to a vanishing slope a step may overflow
    return x, unit_rows(gradient), arrived & (slope > 0)


def segment_boundary(
    decode: Decode, z_a: Tensor, z_b: Tensor, positions: Tensor, *, num_steps: int = 24
) -> BoundaryPoints:
    """Points on the segment from ``z_a`` to ``z_b`` (B, ...) where the token at ``positions`` (B, P) flips.

    ``num_steps`` bisections, each P evaluations of ``decode`` (logits (B, L, V)), for the token read at z_a; the
    direction is that of z_b - z_a. Not accepted where both ends read the same token.
    """
    require_positions(z_a, positions)
    columns = [_bisect(decode, z_a, z_b, column[:, None].to(z_a.device), num_steps) for column in positions.unbind(1)]
    points, flips = (torch.stack(parts, 1) for parts in zip(*columns, strict=True))
    return BoundaryPoints(points, unit_rows(z_b - z_a)[:, None].expand_as(points), flips, "segment", "boundary")


@torch.no_grad()
def _bisect(decode: Decode, z_a: Tensor, z_b: Tensor, position: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    token = read_tokens(decode, z_a, position)[:, 0]
    flips = read_tokens(decode, z_b, position)[:, 0] != token
    low = torch.zeros(len(z_a), dtype=torch.float64, device=z_a.device)
    high = torch.ones_like(low)
    for _ in range(num_steps if bool(flips.any()) else 0):
        middle = (low + high) / 2
        same = read_tokens(decode, _between(z_a, z_b, middle), position)[:, 0] == token
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return _between(z_a, z_b, (low + high) / 2), flips


def data_points(measured: Margins, z: Tensor) -> BoundaryPoints:
    """Data latents ``z`` (B, ...) with the normals of their margins ``measured``; not accepted at a zero gradient."""
    direction, points = measured.direction, z.detach()[:, None]
    return BoundaryPoints(points.expand_as(direction), direction, measured.gradient_norm > 0, "normal", "data")


def segment_points(z_a: Tensor, z_b: Tensor, at: Literal["midpoint", "data"]) -> BoundaryPoints:
    """Midpoints of ``z_a`` and ``z_b`` (B, ...), or z_a itself ("data"), with the direction of the segment: P = 1.

    For decoders without tokens. Not accepted where both are the same latent.
    """
    step = z_b - z_a
    half = torch.full((len(z_a),), 0.5, dtype=torch.float64, device=z_a.device)
    z = _between(z_a, z_b, half) if at == "midpoint" else z_a.detach()
    return BoundaryPoints(z[:, None], unit_rows(step)[:, None], norms(step)[:, None] > 0, "segment", at)


def worst_direction(
    decode: Decode,
    response: Response,
    points: BoundaryPoints,
    *,
    num_iterations: int = 20,
    generator: torch.Generator,
) -> BoundaryPoints:
    """The same points with the direction of the largest response: F's leading eigenvector by power iteration.

    An iteration costs, for each of the P points, a forward-mode pass, an evaluation and a backward pass. Where F is 0
    the direction is random.
    """
    directions = []
    for z, _ in points.columns():
        u = random_directions(z, generator)
        for _ in range(num_iterations):
            image = unit_rows(response.product(decode, z, u))
            u = torch.where(expand_like(norms(image) > 0, u), image, u)
        directions.append(u)
    return replace(points, direction=torch.stack(directions, 1), kind="worst")


def _between(z_a: Tensor, z_b: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(z_a.double(), z_b.double(), expand_like(share, z_a)).to(z_a.dtype)
