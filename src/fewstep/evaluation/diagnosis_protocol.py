"""What must be equal before the rows of two diagnoses compare, stored with each of them."""

from collections.abc import Mapping
from typing import Any

from fewstep.evaluation.readout_measurements import FULL, NOISE_LEVELS, DabiEffort
from fewstep.storage import versions

RESPONSE = "whole output"
"""All positions, or all pixels, count: one number alone has a ratio of n along its own gradient in any decoder."""


def diagnosis_protocol(
    *,
    seed: int,
    num_examples: int,
    num_positions: int | None,
    block_length: int | None,
    data: Mapping[str, Any] | None,
    effort: DabiEffort = FULL,
    packages: tuple[str, ...] = ("transformers",),
) -> dict[str, Any]:
    """Plain values, fit for JSON: how hard DABI was tried, on what, and versions of fewstep, torch and ``packages``.

    Radii and noise levels are in units of the latents' rms. ``block_length`` in tokens, None for images, as
    ``num_positions``; ``data`` names the text or images, with a fingerprint where there is one.
    """
    return {
        "response": RESPONSE,
        "unit": "rms of the latents",
        "radii": list(effort.radii),
        "num_isotropic": effort.num_isotropic,
        "num_probes": effort.num_probes,
        "noise_levels": None if num_positions is None else list(NOISE_LEVELS),
        "examples": num_examples,
        "positions": num_positions,
        "block_length": block_length,
        "seed": seed,
        "data": None if data is None else dict(data),
        "versions": versions(*packages),
    }
