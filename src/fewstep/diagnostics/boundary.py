"""Points to look at, with a direction each. B examples, P positions, L tokens; latents (B, ...), n numbers in one.

Directions and points are this project's definition, after arXiv:2606.30705.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.diagnostics.derivatives import Decode
from fewstep.diagnostics.geometry import norms, random_directions, unit_rows
from fewstep.diagnostics.margins import leader_margin, margins, require_positions
from fewstep.diagnostics.parts import in_parts
from fewstep.diagnostics.response import Response
from fewstep.shapes import expand_like


@dataclass(frozen=True)
class BoundaryPoints:
    """P points an example and one direction at each.

    ``z`` and ``direction`` (B, P, ...); directions have unit length, or are zero where a point is not ``accepted``
    (B, P) bool. ``position`` (B, P) int64 is the token that the point belongs to, None where there are no tokens.
    ``kind`` tells what the direction is and ``at`` where the points lie.
    """

    z: Tensor
    direction: Tensor
    accepted: Tensor
    position: Tensor | None
    kind: Literal["normal", "segment", "worst"]
    at: Literal["boundary", "midpoint", "data"]

    def columns(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """The P points an example, one after the other: ``z`` and ``direction`` (B, ...), ``position`` (B,) or None."""
        count = self.z.shape[1]
        positions = [None] * count if self.position is None else list(self.position.unbind(1))
        return list(zip(self.z.unbind(1), self.direction.unbind(1), positions, strict=True))


def draw_positions(
    num_examples: int,
    num_tokens: int,
    num_positions: int,
    generator: torch.Generator,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Token positions (B, P) int64, uniform and without replacement within an example.

    ``mask`` (B, L), where given, is true at the tokens that may be drawn. Raises ValueError where an example has fewer
    such tokens than ``num_positions``.
    """
    allowed = torch.ones(num_examples, num_tokens, dtype=torch.bool) if mask is None else mask.cpu()
    fewest = int(allowed.sum(1).min()) if num_examples else 0
    if not 1 <= num_positions <= fewest:
        raise ValueError(
            f"{num_positions} positions for {num_examples} examples of at least {fewest} tokens: "
            "expected at least 1 and at most as many as the shortest example has, ask for fewer or leave that one out."
        )
    order = torch.rand(num_examples, num_tokens, generator=generator, device=generator.device).cpu()
    return torch.where(allowed, order, 2.0).argsort(1)[:, :num_positions]


def normal_boundary(
    decode: Decode, z: Tensor, positions: Tensor, *, tol: float = 1e-3, max_steps: int = 20
) -> BoundaryPoints:
    """From each latent to where its leading token at ``positions`` (B, P) is about to flip; the direction is grad m.

    Newton steps along the gradient of m = l_a - max_{b != a} l_b, with a the leader at ``z`` and the runner-up chosen
    anew each step (DeepFool, arXiv:1511.04599), until |m| <= ``tol`` nats, or two steps of the logits' own precision
    where that is coarser. At most ``max_steps`` steps: each costs an evaluation of ``decode``, which gives logits
    (B, L, V), and a backward pass, and so does the last look. A point that has not arrived, or where the gradient is
    zero, is not accepted. Raises ValueError where ``positions`` does not fit ``z``.
    """
    require_positions(z, positions)
    found = [_descend(decode, z, column, tol, max_steps) for column in positions.unbind(1)]
    points, directions, accepted = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    return BoundaryPoints(points, directions, accepted, positions, "normal", "boundary")


def _descend(decode: Decode, z: Tensor, position: Tensor, tol: float, max_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    x, leader = z.detach().clone(), None
    for step in range(max_steps + 1):
        here = leader_margin(decode, x, position, leader)
        leader = here.leader
        slope = norms(here.gradient)
        arrived = here.value.abs() <= (2 * here.resolution).clamp(min=tol)
        moving = ~arrived & (slope > 0)
        if step == max_steps or not bool(moving.any()):
            break
        length = torch.where(moving, here.value / slope.where(moving, 1.0).square(), 0.0)
        ahead = x - (expand_like(length, x) * here.gradient).to(x.dtype)
        x = torch.where(ahead.isfinite(), ahead, x)  # next to a vanishing slope a step may overflow
    return x, unit_rows(here.gradient), arrived & (slope > 0)


def segment_boundary(
    decode: Decode, z_a: Tensor, z_b: Tensor, positions: Tensor, *, num_steps: int = 24
) -> BoundaryPoints:
    """Where on the segment from ``z_a`` to ``z_b`` (B, ...) the token at ``positions`` (B, P) first read at z_a flips.

    Found by ``num_steps`` bisections, each P evaluations of ``decode`` (logits (B, L, V)); the direction is the unit
    vector of z_b - z_a. Not accepted where both ends read the same token. Raises ValueError where ``positions`` does
    not fit, or the ends differ in shape.
    """
    _require_pair(z_a, z_b)
    require_positions(z_a, positions)
    direction = unit_rows(z_b - z_a)
    found = [_bisect(decode, z_a, z_b, column.to(z_a.device), num_steps) for column in positions.unbind(1)]
    points, flips = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
    return BoundaryPoints(points, _repeat(direction, points), flips, positions, "segment", "boundary")


@torch.no_grad()
def _bisect(decode: Decode, z_a: Tensor, z_b: Tensor, position: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    def read_rows(part: Decode, z: Tensor, position: Tensor) -> Tensor:
        return part(z)[torch.arange(len(z), device=z.device), position].argmax(-1)

    def read(z: Tensor) -> Tensor:
        return in_parts(decode, read_rows, z, position)

    token = read(z_a)
    flips = read(z_b) != token
    low, high = torch.zeros(len(z_a), dtype=torch.float64), torch.ones(len(z_a), dtype=torch.float64)
    low, high = low.to(z_a.device), high.to(z_a.device)
    for _ in range(num_steps if bool(flips.any()) else 0):
        middle = (low + high) / 2
        same = read(_between(z_a, z_b, middle)) == token
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return _between(z_a, z_b, (low + high) / 2), flips


def segment_midpoint(z_a: Tensor, z_b: Tensor) -> BoundaryPoints:
    """Midpoints of data latents ``z_a`` and ``z_b`` (B, ...), for decoders without tokens: P = 1, no position.

    Not accepted where both are the same latent. Raises ValueError where they differ in shape.
    """
    _require_pair(z_a, z_b)
    half = torch.full((len(z_a),), 0.5, dtype=torch.float64, device=z_a.device)
    return _along_segment(_between(z_a, z_b, half), z_b - z_a, None, "midpoint")


def data_points(decode: Decode, z: Tensor, positions: Tensor) -> BoundaryPoints:
    """The data latents ``z`` (B, ...) themselves, with the normal of the margin at ``positions`` (B, P) there.

    ``decode`` gives logits (B, L, V). Not accepted at a zero gradient. Raises ValueError where positions do not fit.
    """
    measured = margins(decode, z, positions)
    direction = measured.direction
    return BoundaryPoints(
        _repeat(z.detach(), direction), direction, measured.gradient_norm > 0, positions, "normal", "data"
    )


def data_segments(z_a: Tensor, z_b: Tensor, positions: Tensor | None) -> BoundaryPoints:
    """The data latents ``z_a`` (B, ...) themselves, with the direction to ``z_b``, once for each of ``positions``.

    P = 1 where ``positions`` is None. Not accepted where both latents are the same. Raises ValueError where they differ
    in shape or the positions do not fit.
    """
    _require_pair(z_a, z_b)
    if positions is not None:
        require_positions(z_a, positions)
    return _along_segment(z_a.detach(), z_b - z_a, positions, "data")


def worst_direction(
    decode: Decode,
    response: Response,
    points: BoundaryPoints,
    *,
    num_iterations: int = 20,
    generator: torch.Generator,
) -> BoundaryPoints:
    """The same points with the direction of the largest response: F's leading eigenvector by power iteration.

    An iteration costs, for each position, a forward-mode pass, an evaluation and a backward pass. Where F is 0 the
    direction stays the random one that it began with. What was accepted stays so.
    """

    def iterate(z: Tensor, position: Tensor | None) -> Tensor:
        u = random_directions(z, generator)
        for _ in range(num_iterations):
            image = unit_rows(response.product(decode, z, u, position))
            u = torch.where(expand_like(norms(image) > 0, u), image, u)
        return u

    directions = [iterate(z, position) for z, _, position in points.columns()]
    return replace(points, direction=torch.stack(directions, 1), kind="worst")


def _along_segment(
    z: Tensor, step: Tensor, positions: Tensor | None, at: Literal["midpoint", "data"]
) -> BoundaryPoints:
    count = 1 if positions is None else positions.shape[1]
    direction = unit_rows(step).unsqueeze(1).expand(-1, count, *step.shape[1:])
    accepted = (norms(step) > 0).unsqueeze(1).expand(-1, count)
    return BoundaryPoints(_repeat(z, direction), direction, accepted, positions, "segment", at)


def _repeat(x: Tensor, like: Tensor) -> Tensor:
    """``x`` (B, ...) once for each of the P points of ``like`` (B, P, ...)."""
    return x.unsqueeze(1).expand_as(like)


def _between(z_a: Tensor, z_b: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(z_a.double(), z_b.double(), expand_like(share, z_a)).to(z_a.dtype)


def _require_pair(z_a: Tensor, z_b: Tensor) -> None:
    if z_a.shape != z_b.shape:
        raise ValueError(
            f"latents of shape {tuple(z_a.shape)} and {tuple(z_b.shape)}: expected one partner an example, "
            "pass two batches of equal shape."
        )
