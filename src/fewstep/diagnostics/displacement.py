"""What a decoder reads from clean and from displaced latents: accuracy, and how often a token flips.

Legend: B examples, L tokens, P positions, n numbers in one latent. ``decode`` gives logits (B, L, V) for latents z
(B, ...), and the token read is the argmax.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, in_parts, random_directions, read_tokens, rms
from fewstep.diagnostics.margins import Margins
from fewstep.diagnostics.result import (
    Axes,
    Estimate,
    Result,
    Row,
    estimate_series,
    mean_estimate,
    mean_of_all,
    ratio_estimate,
    resampled,
)
from fewstep.shapes import randn

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
"""Noise levels: standard deviation of the noise in each number, in units of the latents' rms."""
FLIP_RADII = (0.05, 0.1, 0.2)
"""In units of sqrt(n) rms, the length of a latent."""


@torch.no_grad()
def token_accuracy(
    decode: Decode, z: Tensor, ids: Tensor, *, generator: torch.Generator, name: str = "token_accuracy"
) -> Result:
    """Share of the tokens ``ids`` (B, L) that are read from ``z`` (B, ...), their latents."""
    hits = read_tokens(decode, z) == ids.to(z.device)
    return Result(name, (Row(name, mean_of_all(hits, generator), "", f"{ids.numel()} tokens"),))


@torch.no_grad()
def reconstruction_error(decode: Decode, z: Tensor, images: Tensor, *, generator: torch.Generator) -> Result:
    """Squared error of ``decode(z)`` against ``images`` (B, ...), over their variance around their mean image.

    0 is perfect; the mean image alone would have 1.
    """

    def squared_error(part: Decode, z: Tensor, images: Tensor) -> Tensor:
        return (part(z).double() - images.double()).flatten(1).square().sum(1)

    images = images.to(z.device)
    variance = (images.double() - images.double().mean(0)).flatten(1).square().sum(1)
    error = in_parts(decode, squared_error, z, images)
    name, note = "reconstruction_error", "squared error / variance of the images"
    return Result(name, (Row(name, ratio_estimate(error, variance, generator), "", note),))


@torch.no_grad()
def noise_robustness(
    decode: Decode,
    z: Tensor,
    ids: Tensor,
    positions: Tensor,
    measured: Margins,
    *,
    levels: Sequence[float] = LEVELS,
    generator: torch.Generator,
) -> Result:
    """Accuracy of the tokens read from latents displaced from ``z`` (B, ...), against ``ids`` (B, L).

    Rows ``noise_accuracy_at_LEVEL``: all tokens, under z + level rms(z) noise, the same noise at every level.
    ``aligned_accuracy_at_LEVEL``: those at ``positions`` (B, P), with the latent moved as far as that noise is long,
    level sqrt(n) rms, along the token's own normal towards the runner-up, by ``measured``, the margins there. Further
    curves: the tokens at ``positions`` under noise, and moved by level rms along the normal. A point with a zero
    gradient stays in place. Costs 1 + 2P evaluations per level.
    """
    ids, positions = ids.to(z.device), positions.to(z.device)
    noise, unit, n = randn(tuple(z.shape), z, generator).to(z.dtype), rms(z), z[0].numel()
    targets = ids.gather(1, positions)
    labels = {
        "isotropic": "isotropic, all tokens",
        "isotropic_at_positions": "isotropic",
        "aligned": "along the normal, as far",
        "aligned_one_number": "along the normal, level rms",
    }
    estimates: dict[str, list[Estimate]] = {key: [] for key in labels}
    rows = []
    tokens, points = f"{ids.numel()} tokens, isotropic", f"{positions.numel()} tokens, as far along the normal, n = {n}"
    for level in levels:
        hits = read_tokens(decode, z + level * unit * noise) == ids
        far, near = (
            _tokens_along_normals(decode, z, positions, measured, distance) == targets
            for distance in (level * unit * math.sqrt(n), level * unit)
        )
        for key, column in zip(labels, (hits, hits.gather(1, positions), far, near), strict=True):
            estimates[key].append(mean_of_all(column, generator))
        rows.append(Row(f"noise_accuracy_at_{level:g}", estimates["isotropic"][-1], "", tokens))
        rows.append(Row(f"aligned_accuracy_at_{level:g}", estimates["aligned"][-1], "", points))
    return Result(
        "noise_robustness",
        tuple(rows),
        {key: estimate_series(labels[key], levels, column) for key, column in estimates.items()},
        Axes("Token accuracy of displaced latents", "level (rms)", "token accuracy"),
        {"n": n, "levels": tuple(map(float, levels)), "num_tokens": ids.numel(), "num_points": positions.numel()},
    )


@torch.no_grad()
def dabi_flip(
    decode: Decode,
    z: Tensor,
    positions: Tensor,
    measured: Margins,
    *,
    radii: Sequence[float] = FLIP_RADII,
    num_isotropic: int = 12,
    generator: torch.Generator,
) -> Result:
    """Share of data points whose token flips when moved r along its normal, over the share that flips isotropically.

    At a boundary point every direction flips the token, so flips are counted at data: ``z`` (B, ...) are data latents,
    ``positions`` (B, P) their tokens and ``measured`` the margins there. Rows ``dabi_flip_at_C`` at r = c sqrt(n)
    rms(z), c in ``radii``. The move along the normal is towards the runner-up; ``num_isotropic`` draws per example
    serve all radii and positions. Where none of N independent draws flips a token, the ratio is a lower bound,
    ``share along the normal`` N / 3 (rule of three: one-sided 95 %), marked ">="; resamples without an isotropic flip
    use that bound as well. Points with a zero gradient have no normal and are left out.
    """
    n, positions = z[0].numel(), positions.to(z.device)
    lengths = [c * math.sqrt(n) * rms(z) for c in radii]
    before = read_tokens(decode, z, positions)
    ahead = [_tokens_along_normals(decode, z, positions, measured, radius) != before for radius in lengths]
    isotropic = torch.zeros(len(lengths), *positions.shape, dtype=torch.float64)
    for _ in range(num_isotropic):
        u = random_directions(z, generator)
        for k, radius in enumerate(lengths):
            isotropic[k] += (read_tokens(decode, z + radius * u, positions) != before).cpu()
    isotropic /= num_isotropic
    usable = (measured.gradient_norm > 0).cpu()
    num_left_out = int((~usable).sum())
    note = f"n = {n}, {int(usable.sum())} data points"
    if num_left_out:
        note += f", {num_left_out} with a zero gradient left out"
    rows, normals, others = list[Row](), list[Estimate](), list[Estimate]()
    for c, length, along, random in zip(radii, lengths, ahead, isotropic, strict=True):
        ratio, bound = _flip_ratio(along.double().cpu(), random, usable, num_isotropic, generator)
        normals.append(mean_estimate(along, usable, generator))
        others.append(mean_estimate(random, usable, generator))
        rows.append(Row(f"dabi_flip_at_{c:g}", ratio, "", f"{bound}r = {length:.4g}, {note}"))
    return Result(
        "dabi_flip",
        tuple(rows),
        {
            "normal": estimate_series("along the normal", radii, normals),
            "isotropic": estimate_series("isotropic", radii, others),
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


def _tokens_along_normals(decode: Decode, z: Tensor, positions: Tensor, measured: Margins, distance: float) -> Tensor:
    """The token read at each of ``positions`` (B, P) with the latent moved ``distance`` towards its runner-up."""
    columns = [
        read_tokens(decode, z - distance * direction, position[:, None])
        for direction, position in zip(measured.direction.unbind(1), positions.unbind(1), strict=True)
    ]
    return torch.cat(columns, 1)


def _flip_ratio(
    normal: Tensor, isotropic: Tensor, usable: Tensor, num_isotropic: int, generator: torch.Generator
) -> tuple[Estimate, str]:
    """The ratio, and what to write before it where it is a lower bound."""
    counts = torch.stack([(normal * usable).sum(1), (isotropic * usable).sum(1), usable.double().sum(1)], 1)
    counts = counts[counts[:, 2] > 0]

    def ratio(rows: Tensor) -> Tensor:  # (..., N, 3) to (...)
        along, random, points = rows.sum(-2).unbind(-1)
        return torch.where(random > 0, along / random, along / points * (len(counts) * num_isotropic / 3))

    if not counts[:, :2].any():
        return Estimate(None, None, len(counts)), ""
    bounded = not counts[:, 1].any()
    bound = f">= (no flip in {len(counts) * num_isotropic} isotropic draws); " if bounded else ""
    return resampled(float(ratio(counts)), counts, ratio, generator), bound
