"""MAUVE, by the package of its authors, an optional extra. N and M texts, H features."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError

SEED, SCALING = 25, 5.0
"""The package's own defaults: the seed of the clusters, and the paper's constant c."""


def mauve_score(real: Tensor, samples: Tensor, *, seed: int = SEED, scaling: float = SCALING) -> float:
    """MAUVE (arXiv:2102.01454) of features ``real`` (N, H) and ``samples`` (M, H), in (0, 1], 1 for equal texts.

    The features' clusters, min(N, M) / 10 of them and at least 2, are drawn with ``seed``; ``scaling`` is the paper's
    constant c. Values depend on N, M, the features' model and the length of the texts: compare equal ones only; papers
    take thousands of texts. Raises ``UserError`` where the extra is not installed, ``ValueError`` for features of
    different widths or fewer than 2 texts.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1] or min(len(real), len(samples)) < 2:
        raise ValueError(
            f"features of shapes {tuple(real.shape)} and {tuple(samples.shape)}: expected (N, H) and (M, H) with the "
            "same H and at least 2 texts each"
        )
    compute_mauve = _package()
    arrays = [features.detach().cpu().to(torch.float32).numpy() for features in (samples, real)]
    found = compute_mauve(*arrays, seed=seed, mauve_scaling_factor=scaling, verbose=False)
    return float(found.mauve)


def mauve_package_version() -> str:
    """Version of the package mauve-text, "unknown" where it lies on the path without a record of its installation.

    Raises ``UserError`` where it is not there or cannot be imported: to be asked before any work.
    """
    _package()
    try:
        return version("mauve-text")
    except PackageNotFoundError:
        return "unknown"


def _package() -> Callable[..., Any]:
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise UserError(
            f"MAUVE needs the package mauve-text ({error}): pip install 'fewstep[mauve]', or leave MAUVE out"
        ) from None
    return compute_mauve
