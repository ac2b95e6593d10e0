"""Distribution matching: a student whose samples follow the data's law. B batch, K positions, D latent dimension."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers import ENDPOINT, EstimateKind, FlowModel
from fewstep.objectives.base import Objective
from fewstep.paths import Path
from fewstep.schedules import UniformTime, grid_of
from fewstep.shapes import expand_like, masked_mean, randn
from fewstep.types import Latents, LossOutput

MIN_DISTANCE = 1e-4
"""Floor of the mean distance to the teacher's estimate, by which the gradient is divided."""


class Generated(NamedTuple):
    """The student's samples ``x_1`` (B, K, D), 0 at padding, made at the times ``start`` (B,), and ``mask`` (B, K)."""

    x_1: Tensor
    start: Tensor
    mask: Tensor


@dataclass(kw_only=True, eq=False)
class DistributionMatching(Objective):
    """Distribution matching (DMD, arXiv:2311.18828; for text Simplex-DMD, arXiv:2609.40235), on any path.

    The student's estimate x_hat at z_T, data noised to a time T, is taken as a sample of the data. Noised again, with
    fresh noise to a time t in (T, 1), it is read by two denoisers: the teacher, whose estimate is the mean of the data
    given x_t, and the auxiliary network, whose estimate is the mean of the student's samples given x_t. x_hat moves by

        (auxiliary(x_t, t, T) - teacher(x_t, t)) / mean |x_hat - teacher(x_t, t)|,

    the gradient of the divergence between the two noised laws, until the student's law is the data's at every T. The
    estimate is then a sample: all noise is fresh between two steps. Student and auxiliary network start from the flow.

    ``auxiliary_updates`` of the auxiliary network follow each one of the student (DMD2, arXiv:2405.14867), by
    regression of x_hat at ``auxiliary_learning_rate``. T is 0, pure noise, in a share ``initial_share`` of a batch and
    uniform in the rest; with ``num_steps`` N it is one of the N starts of the sampler's default grid, and the model is
    for N steps. ``time_sampler`` draws (t - T) / (1 - T). On latents of several tokens the flow's estimate at T > 0
    writes better than what training there makes of it: docs/findings/few-steps.md.
    """

    estimate: ClassVar[EstimateKind] = ENDPOINT
    needs_teacher: ClassVar[bool] = True
    auxiliary_updates: int = 4
    auxiliary_learning_rate: float = 1e-3
    initial_share: float = 1.0
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if self.auxiliary_updates < 1 or self.auxiliary_learning_rate <= 0:
            raise ValueError(
                f"auxiliary_updates {self.auxiliary_updates}, auxiliary_learning_rate {self.auxiliary_learning_rate}: "
                "expected at least 1 update and a rate > 0"
            )
        if not 0 <= self.initial_share <= 1 or (self.num_steps is not None and self.num_steps < 1):
            raise ValueError(
                f"initial_share {self.initial_share}, num_steps {self.num_steps}: "
                "expected a share in [0, 1], and at least 1 step or none"
            )
        self._uniform = UniformTime(stratified=True)

    @property
    def trained_nfe(self) -> int | None:
        return self.num_steps

    @property
    def passes_per_step(self) -> float:
        return 5.0 + 3.0 * self.auxiliary_updates

    def generate(self, model: FlowModel, latents: Latents, generator: torch.Generator) -> Generated:
        """The student's samples from noised ``latents`` (B, K, D)."""
        real = latents.mask[..., None]
        start = self.starts(len(latents.z), generator).to(latents.z.device)
        x_0 = randn(tuple(latents.z.shape), latents.z, generator)
        z_t = model.path.sample(latents.z, x_0, start) * real
        return Generated(model.denoise(z_t, start, mask=latents.mask) * real, start, latents.mask)

    def starts(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """The times T (B,) at which the student samples."""
        if self.num_steps is not None:
            shares = self._uniform.sample(batch_size, generator)
            step = (shares * self.num_steps).long().clamp(max=self.num_steps - 1)
            return grid_of(self.time_sampler).times(self.num_steps)[step]
        initial = round(self.initial_share * batch_size)
        start = torch.zeros(batch_size)
        if initial < batch_size:
            start[initial:] = self._uniform.sample(batch_size - initial, generator)
        return start

    def student_loss(
        self, generated: Generated, auxiliary: FlowModel, teacher: FlowModel, generator: torch.Generator
    ) -> LossOutput:
        """Half the mean square of the difference of the two estimates, with that difference as gradient of x_hat."""
        x_1, start, mask = generated
        with torch.no_grad():
            t, _, x_t = self._noised(generated, teacher.path, generator)
            of_data = teacher.denoise(x_t, t, mask=mask)
            of_student = auxiliary.denoise(x_t, t, s=start, mask=mask)
            distance = masked_mean((x_1 - of_data).abs(), mask).clamp(min=MIN_DISTANCE)
            target = x_1 - (of_student - of_data) / expand_like(distance, x_1)
        per_example = masked_mean((x_1 - target).square(), mask) / 2
        terms = {"distance_to_teacher": distance.mean()}
        return LossOutput(per_example.mean(), per_example.detach(), terms)

    def auxiliary_loss(self, generated: Generated, auxiliary: FlowModel, generator: torch.Generator) -> Tensor:
        """Mean squared error, a scalar, of the auxiliary network's own target: x_hat, or the velocity towards it."""
        generated = generated._replace(x_1=generated.x_1.detach())
        x_1, start, mask = generated
        t, noise, x_t = self._noised(generated, auxiliary.path, generator)
        value = auxiliary.predict(x_t, t, start, mask=mask).value
        target = x_1 if auxiliary.prediction == "x1" else auxiliary.path.velocity(x_1, noise, t)
        return masked_mean((value - target).square(), mask).mean()

    def _noised(self, generated: Generated, path: Path, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Times t (B,), noise (B, K, D) and x_t (B, K, D) of samples that are noised again."""
        x_1, start, mask = generated
        t = start + (1 - start) * self.time_sampler.sample(len(x_1), generator, x_1.device)
        noise = randn(tuple(x_1.shape), x_1, generator) * mask[..., None]
        return t, noise, path.sample(x_1, noise, t)
