"""Semigroup self-distillation: one jump ends where two end. B batch, K positions, D latent dimension."""

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.few_step import Regression, prediction_from_x1
from fewstep.objectives.flow_map import FlowMapObjective, Jumps
from fewstep.paths import Path
from fewstep.shapes import rand


class SemigroupSelfDistillation(FlowMapObjective):
    """arXiv:2505.18825, progressive self-distillation, on any path: X(t, s) = X(r, s) o X(t, r) for t < r < s.

    Both short jumps are the model's own and without gradient; r is uniform between t and s. See
    :func:`composed_estimate` for the target. Short jumps learn from those with s = t, long ones from shorter ones.
    Other settings as :class:`MeanFlow`; ``ValueError`` for a network of one time.
    """

    @property
    def jump_passes(self) -> float:
        """Three of the long jump, one of each short one."""
        return 5.0

    def jump_regression(self, model: FlowModel, jumps: Jumps) -> Regression:
        """The long jump to the end of two; the readout's tokens at the target stand in for the data's."""
        x_t, t, s, draw = jumps.x_t, jumps.t, jumps.s, jumps.draw
        r = t + rand((len(t),), t, draw.generator) * (s - t)
        return jump_as_two(model, jumps.rows, x_t, (t, r, s), (r, s), draw.mask)


def jump_as_two(
    model: FlowModel,
    rows: slice,
    x_t: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    told: tuple[Tensor, Tensor],
    mask: Tensor,
) -> Regression:
    """The jump from ``times[0]`` to ``times[2]`` regressed on :func:`composed_estimate`."""
    t, _, s = times
    target = prediction_from_x1(model, composed_estimate(model, x_t, times, told, mask), x_t, t)
    value = model.predict(x_t, t, s, mask=mask).value
    return Regression(rows, x_t, t, value, target, from_data=False)


@torch.no_grad()
def composed_estimate(
    model: FlowModel,
    x_t: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    told: tuple[Tensor, Tensor],
    mask: Tensor,
) -> Tensor:
    """The estimate (B, K, D) towards which one jump from t to s must go to end where two end, by way of r.

    ``times`` are t <= r <= s, (B,) each. ``told`` is where the network is told that the two jumps end: r and s,
    or t and r for steps along the instantaneous flow. With F_1 and F_2 the estimates of the two jumps this is

        F = w F_1 + (1 - w) F_2,
        w = sigma_s (alpha_r sigma_t - alpha_t sigma_r) / (sigma_r (alpha_s sigma_t - alpha_t sigma_s)),

    since x / sigma moves by the estimate times the growth of alpha / sigma (this project's form of it). w lies
    in [0, 1], also where t and s nearly coincide and a quotient of displacements would be noise.
    """
    t, r, _ = times
    first = model.denoise(x_t, t, s=told[0], mask=mask)
    x_r = model.path.sample(first, model.path.eps_from_x1(x_t, first, t), r) * mask[..., None]
    second = model.denoise(x_r, r, s=told[1], mask=mask)
    w = first_share(model.path, times, x_t)
    return w * first + (1 - w) * second


def first_share(path: Path, times: tuple[Tensor, Tensor, Tensor], like: Tensor) -> Tensor:
    """w of :func:`composed_estimate`, (B, 1, 1): the first jump's share of the growth of alpha / sigma.

    0 where there is none, at s = t and at r = 1."""
    (alpha_t, sigma_t), (alpha_r, sigma_r), (alpha_s, sigma_s) = (path.alpha_sigma(time, like) for time in times)
    part = sigma_s * (alpha_r * sigma_t - alpha_t * sigma_r)
    whole = sigma_r * (alpha_s * sigma_t - alpha_t * sigma_s)
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0).clamp(0, 1)
