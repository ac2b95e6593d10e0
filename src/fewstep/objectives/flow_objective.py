"""What every objective of a denoiser has in common. B batch, L tokens, K positions, D latent dimension."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from fewstep.denoisers import EstimateKind, FlowModel
from fewstep.readouts import ParallelReadout
from fewstep.schedules import TimeSampler
from fewstep.types import Latents, LossOutput, TokenBatch


class FlowObjective(ABC):
    """How a denoiser is trained on latents.

    ``estimate`` is what the trained model's clean estimate is, and ``needs_teacher`` whether a trained flow must be
    given. ``time_sampler`` says where training spends its time, which the sampler's grid follows.
    """

    estimate: ClassVar[EstimateKind] = "posterior_mean"
    needs_teacher: ClassVar[bool] = False
    time_sampler: TimeSampler

    @property
    def trained_nfe(self) -> int | None:
        """The number of steps that the model is trained for; None where it is any."""
        return None

    @property
    def passes_per_step(self) -> float:
        """Forward passes of a denoiser that one example costs in one training step, the teacher's included.

        A backward pass counts as two, a forward-mode derivative as one beside the pass that it comes with (this
        project's definition of training compute).
        """
        return 3.0

    @abstractmethod
    def forward(
        self,
        model: FlowModel,
        latents: Latents,
        *,
        tokens: TokenBatch | None,
        readout: ParallelReadout | None,
        generator: torch.Generator,
        teacher: FlowModel | None = None,
        progress: float = 1.0,
    ) -> LossOutput:
        """Loss over a batch of ``latents`` (B, K, D) and the ``tokens`` (B, L) that they stand for.

        ``tokens`` and ``readout`` are None for latents of other things than text. ``progress`` in [0, 1] is the share
        of the training that is done, for what changes on the way. Raises ``ValueError`` where something is missing
        that the objective needs.
        """
        ...


def require_one_time(objective: FlowObjective, model: FlowModel) -> None:
    """Raise ``ValueError`` where the network is told where a jump ends, which this objective never trains."""
    if model.two_times:
        raise ValueError(f"{type(objective).__name__} needs a denoiser of one time: build it with two_times=False")


def require_two_times(objective: FlowObjective, model: FlowModel) -> None:
    """Raise ``ValueError`` unless the network is told where a jump ends."""
    if not model.two_times:
        raise ValueError(f"{type(objective).__name__} needs a denoiser of two times: build it with two_times=True")
