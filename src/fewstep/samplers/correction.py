"""A correction of the model's clean estimate inside the loop. B examples, K latent positions, D dimensions."""

from typing import Protocol, TypeGuard

from torch import Tensor

from fewstep.schedules import upcast
from fewstep.types import FlowLike, FlowMapLike


class Correction(Protocol):
    """Replaces an estimate by a better one before the step that is made with it (:class:`fewstep.samplers.Snap`)."""

    def __call__(self, x1_hat: Tensor, step: int, num_steps: int, mask: Tensor | None) -> Tensor:
        """The estimate (B, K, D) to use in place of ``x1_hat`` at ``step`` 0..N-1 of N, in its shape and dtype.

        ``mask`` (B, K) is false at padding, which the sampler holds at zero whatever is returned there. Row b of the
        result may depend on row b of ``x1_hat`` only: then a sample does not depend on its batch.
        """
        ...

    def passes(self, num_positions: int, step: int, num_steps: int) -> int:
        """Forward passes of networks that one call costs at K = ``num_positions``; counted as evaluations."""
        ...


def is_flow_map(model: FlowLike) -> TypeGuard[FlowMapLike]:
    """Whether the estimate of ``model`` depends on where a jump ends."""
    return isinstance(model, FlowMapLike) and model.two_times


def estimate(
    model: FlowLike, x_t: Tensor, t: Tensor, s: Tensor | None, mask: Tensor | None, self_cond: Tensor | None
) -> Tensor:
    """x1_hat (B, K, D) at (x_t, t), of a flow map for the jump to ``s`` (B,)."""
    if is_flow_map(model):
        return model.denoise(x_t, t, s=s, mask=mask, self_cond=self_cond)
    return model.denoise(x_t, t, mask=mask, self_cond=self_cond)


class CorrectedModel:
    """A model whose clean estimates at one step of N are corrected, also where the solver asks for them itself."""

    def __init__(self, model: FlowLike, correct: Correction, step: int, num_steps: int) -> None:
        self.model = model
        self.correct = correct
        self.step = step
        self.num_steps = num_steps

    @property
    def two_times(self) -> bool:
        """Whether the model is a flow map."""
        return is_flow_map(self.model)

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        s: Tensor | None = None,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        """The corrected clean estimate (B, K, D), at least float32; ``s`` (B,) where a flow map's jump ends."""
        return self.correct(upcast(estimate(self.model, x_t, t, s, mask, self_cond)), self.step, self.num_steps, mask)

    def velocity_of(self, x_t: Tensor, x1_hat: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, K, D) that belongs to ``x1_hat``, corrected or not, at (x_t, t)."""
        return self.model.velocity_of(x_t, x1_hat, t)
