"""A teacher followed over a few steps, for objectives that learn where it goes. B batch, K positions, D dimension."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel


@torch.no_grad()
def follow(
    teacher: FlowModel, x_t: Tensor, times: Sequence[Tensor], mask: Tensor, *, second_order: bool = False
) -> Tensor:
    """Where ``teacher`` takes ``x_t`` (B, K, D) from ``times[0]`` to ``times[-1]``, (B,) each: (B, K, D), no gradient.

    The steps are the sampler's: Euler's x_s = alpha_s x1_hat + sigma_s eps_hat, which on the variance preserving path
    is DDIM (arXiv:2010.02502, eq. 12), or with ``second_order`` Heun's on all but the last, by the same trapezoidal
    rule for x_1 and eps as :func:`fewstep.samplers.heun`. M steps cost M passes of the teacher, or 2 M - 1.
    ``mask`` (B, K): padding, zero in ``x_t``, is held there. Raises ``ValueError`` for fewer than 2 times.
    """
    if len(times) < 2:
        raise ValueError(f"{len(times)} times: a step needs 2")
    path, held = teacher.path, mask[..., None]
    for k, (t, s) in enumerate(pairwise(times)):
        x_1 = teacher.denoise(x_t, t, mask=mask)
        eps = path.eps_from_x1(x_t, x_1, t)
        if second_order and k < len(times) - 2:
            x_s = path.sample(x_1, eps, s) * held
            x1_end = teacher.denoise(x_s, s, mask=mask)
            x_1, eps = (x_1 + x1_end) / 2, (eps + path.eps_from_x1(x_s, x1_end, s)) / 2
            x_t = (x_t + path.sample(x_1, eps, s) - path.sample(x_1, eps, t)) * held
        else:
            x_t = path.sample(x_1, eps, s) * held
    return x_t
