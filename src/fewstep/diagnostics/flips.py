"""Flip counts at data points: ``dabi_flip`` (after arXiv:2606.30705).

Legend: B examples, P positions, n numbers in one latent. At a boundary point every direction flips the token, so flips
are counted at data points.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, numbers_per_latent, random_directions, read_tokens, rms
from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.result import NUM_RESAMPLES, Axes, Estimate, Result, Row, estimate_series, mean_estimate
from fewstep.metrics.intervals import bootstrap_interval

FLIP_RADII = (0.05, 0.1, 0.2)


def dabi_flip(
    decode: Decode,
    z: Tensor,
    positions: Tensor,
    *,
    radii: Sequence[float] = FLIP_RADII,
    num_isotropic: int = 12,
    generator: torch.Generator,
) -> Result:
    """Share of data points whose token flips when moved r along its normal, over the share that flips isotropically.

    ``z`` (B, ...) are data latents, ``positions`` (B, P) their tokens, ``decode`` gives logits (B, L, V). Rows
    ``dabi_flip_at_C`` at r = c sqrt(n) rms(z), c in ``radii``. The move along the normal is towards the runner-up;
    ``num_isotropic`` draws per example serve all radii and positions. Where none of N independent draws flips a token,
    the ratio is a lower bound, ``share along the normal`` N / 3 (rule of three: one-sided 95 %), marked ">="; resamples
    without an isotropic flip use that bound as well. Points with a zero gradient have no normal and are left out.
    """
    measured, n = margins(decode, z, positions), numbers_per_latent(z)
    lengths = [c * math.sqrt(n) * rms(z) for c in radii]
    usable = (measured.gradient_norm > 0).cpu()
    shares = _flip_shares(decode, z, positions, measured.direction, lengths, num_isotropic, generator)
    rows, along, isotropic = [], [], []
    note = f"n = {n}, {int(usable.sum())} data points"
    if num_left_out := int((~usable).sum()):
        note += f", {num_left_out} with a zero gradient left out"
    for c, length, ahead, random in zip(radii, lengths, *shares, strict=True):
        ratio, num_draws, bounded = _ratio(ahead, random, usable, num_isotropic, generator)
        along.append(mean_estimate(ahead, usable, generator))
        isotropic.append(mean_estimate(random, usable, generator))
        bound = f">= (no flip in {num_draws} isotropic draws); " if bounded else ""
        rows.append(Row(f"dabi_flip_at_{c:g}", ratio, "", f"{bound}r = {length:.4g}, {note}"))
    return Result(
        "dabi_flip",
        tuple(rows),
        {
            "normal": estimate_series("along the normal", radii, along),
            "isotropic": estimate_series("isotropic", radii, isotropic),
        },
        Axes("Flipped tokens", "radius c = r / (sqrt(n) rms)", "share of points", log_x=True),
        {
            "n": n,
            "num_examples": len(z),
            "num_points": int(usable.sum()),
            "num_left_out": num_left_out,
            "lengths": tuple(lengths),
            "num_isotropic": num_isotropic,
        },
    )


@torch.no_grad()
def _flip_shares(
    decode: Decode,
    z: Tensor,
    positions: Tensor,
    normals: Tensor,
    lengths: Sequence[float],
    num_isotropic: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Whether each point flips along its normal, and how often isotropically; (number of radii, B, P) each, in [0, 1].

    One isotropic displacement moves the whole latent, so a draw serves all positions of an example.
    """
    positions = positions.to(z.device)
    before = read_tokens(decode, z).gather(1, positions)
    normal = torch.zeros(len(lengths), *positions.shape, dtype=torch.float64)
    isotropic = torch.zeros_like(normal)
    for k, radius in enumerate(lengths):
        for p, direction in enumerate(normals.unbind(1)):
            after = read_tokens(decode, z - radius * direction).gather(1, positions[:, p : p + 1])[:, 0]
            normal[k, :, p] = (after != before[:, p]).cpu()
    for _ in range(num_isotropic):
        u = random_directions(z, generator)
        for k, radius in enumerate(lengths):
            isotropic[k] += (read_tokens(decode, z + radius * u).gather(1, positions) != before).cpu()
    return normal, isotropic / num_isotropic


def _ratio(
    normal: Tensor, isotropic: Tensor, usable: Tensor, num_isotropic: int, generator: torch.Generator
) -> tuple[Estimate, int, bool]:
    """The ratio, how many independent isotropic draws it has, and whether it is a lower bound."""
    counts = torch.stack([(normal * usable).sum(1), (isotropic * usable).sum(1), usable.double().sum(1)], 1)
    counts = counts[counts[:, 2] > 0]

    def ratio(rows: Tensor) -> float:
        along, random, points = rows.sum(0).tolist()
        return along / random if random > 0 else along / points * (len(rows) * num_isotropic / 3)

    num_draws = len(counts) * num_isotropic
    along, random = counts[:, :2].sum(0).tolist() if len(counts) else (0.0, 0.0)
    if not along and not random:
        return Estimate(None, None, len(counts)), num_draws, False
    interval = bootstrap_interval(counts, ratio, NUM_RESAMPLES, generator)
    return Estimate(ratio(counts), interval, len(counts)), num_draws, random == 0
