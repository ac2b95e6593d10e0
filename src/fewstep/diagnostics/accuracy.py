"""How much of its data a decoder returns, from clean and from displaced latents.

Legend: B examples, L tokens, P positions, n numbers in one latent.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, in_parts, numbers_per_latent, read_tokens, rms
from fewstep.diagnostics.margins import Margins, margins
from fewstep.diagnostics.result import Axes, Estimate, Result, Row, estimate_series, mean_estimate, ratio_estimate
from fewstep.shapes import randn

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
"""Noise levels: standard deviation of the noise in each number, in units of the latents' rms."""


@torch.no_grad()
def token_accuracy(
    decode: Decode, z: Tensor, ids: Tensor, *, generator: torch.Generator, name: str = "token_accuracy"
) -> Result:
    """Share of the tokens ``ids`` (B, L) that are the argmax of ``decode(z)`` (B, L, V), z (B, ...) their latents."""
    hits = read_tokens(decode, z) == ids.to(z.device)
    estimate = mean_estimate(hits, torch.ones_like(hits), generator)
    return Result(name, (Row(name, estimate, "", f"{ids.numel()} tokens"),))


@torch.no_grad()
def reconstruction_error(
    decode: Decode, z: Tensor, images: Tensor, *, generator: torch.Generator, name: str = "reconstruction_error"
) -> Result:
    """Squared error of ``decode(z)`` against ``images`` (B, ...), over their variance around their mean image.

    0 is perfect; the mean image alone would have 1.
    """
    images = images.to(z.device)
    variance = (images.double() - images.double().mean(0)).flatten(1).square().sum(1)
    error = in_parts(decode, _squared_error, z, images)
    note = "squared error / variance of the images"
    return Result(name, (Row(name, ratio_estimate(error, variance, generator), "", note),))


def _squared_error(decode: Decode, z: Tensor, images: Tensor) -> Tensor:
    return (decode(z).double() - images.double()).flatten(1).square().sum(1)


@torch.no_grad()
def noise_robustness(
    decode: Decode,
    z: Tensor,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor | None,
    *,
    levels: Sequence[float] = LEVELS,
    generator: torch.Generator,
) -> Result:
    """Accuracy of argmax ``decode`` (B, L, V) against ``ids`` (B, L) for latents displaced from ``z`` (B, ...).

    Rows ``noise_accuracy_at_LEVEL``: all tokens where ``mask`` (B, L) is true, under z + level rms(z) noise, the same
    noise at every level. With ``positions`` (B, P) also ``aligned_accuracy_at_LEVEL``: the tokens there, with the
    latent moved as far as that noise is long, level sqrt(n) rms, along the token's own normal towards the runner-up.
    Further curves: the tokens at ``positions`` under noise, and moved by level rms along the normal. A point with a
    zero gradient stays in place. Costs 1 + 2P evaluations per level, and the margins.
    """
    ids, mask = ids.to(z.device), mask.to(z.device)
    noise, unit, n = randn(tuple(z.shape), z, generator).to(z.dtype), rms(z), numbers_per_latent(z)
    labels = {
        "isotropic": "isotropic, all tokens",
        "isotropic_at_positions": "isotropic",
        "aligned": "along the normal, as far",
        "aligned_one_number": "along the normal, level rms",
    }
    estimates: dict[str, list[Estimate]] = {key: [] for key in labels}
    rows, num_points = [], 0
    if positions is not None:
        positions = positions.to(z.device)
        counted, measured = mask.gather(1, positions), margins(decode, z, positions)
        num_points = int(counted.sum())
    for level in levels:
        hits = read_tokens(decode, z + level * unit * noise) == ids
        everywhere = mean_estimate(hits, mask, generator)
        estimates["isotropic"].append(everywhere)
        rows.append(Row(f"noise_accuracy_at_{level:g}", everywhere, "", f"{int(mask.sum())} tokens, isotropic"))
        if positions is None:
            continue
        estimates["isotropic_at_positions"].append(mean_estimate(hits.gather(1, positions), counted, generator))
        for key, far in (("aligned", math.sqrt(n)), ("aligned_one_number", 1.0)):
            hits = _hits_along_normal(decode, z, ids, positions, measured, level * unit * far)
            estimates[key].append(mean_estimate(hits, counted, generator))
        note = f"{num_points} tokens, as far along the normal, n = {n}"
        rows.append(Row(f"aligned_accuracy_at_{level:g}", estimates["aligned"][-1], "", note))
    return Result(
        "noise_robustness",
        tuple(rows),
        {key: estimate_series(labels[key], levels, column) for key, column in estimates.items() if column},
        Axes("Token accuracy of displaced latents", "level (rms)", "token accuracy"),
        {"n": n, "levels": tuple(map(float, levels)), "num_tokens": int(mask.sum()), "num_points": num_points},
    )


def _hits_along_normal(
    decode: Decode, z: Tensor, ids: Tensor, positions: Tensor, measured: Margins, distance: float
) -> Tensor:
    """Whether the token at each of ``positions`` is right (B, P) with the latent ``distance`` towards its runner-up."""
    columns = []
    for direction, position in zip(measured.direction.unbind(1), positions.unbind(1), strict=True):
        tokens = read_tokens(decode, z - distance * direction)
        columns.append((tokens == ids).gather(1, position[:, None])[:, 0])
    return torch.stack(columns, 1)
