"""What a denoising network returns, and what the clean estimate of a trained model is."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class DenoiserOutput:
    """``value`` (B, K, D), in the space the network predicts (x_1 or velocity), at least float32.

    ``token_logits`` (B, K, V) if the network reaches its value through a distribution over tokens, else None.
    """

    value: Tensor
    token_logits: Tensor | None = None


@runtime_checkable
class ReadsCodebook(Protocol):
    """A denoiser of x_1 that is given the code of single tokens before training. ``config`` names its path, if any."""

    def set_codebook(self, codebook: Tensor, log_prior: Tensor) -> None:
        """Store the code (V, D) and the tokens' log-frequencies (V,) in nats, as buffers."""
        ...


@dataclass(frozen=True)
class EstimateKind:
    """What the clean estimate of a trained model is. Samplers and teachers ask these fields, not its name.

    ``two_times``: it depends on where a jump ends, so the network needs a second time. ``has_velocity``: it gives the
    flow's velocity at every state, so any solver can follow it and a student can learn from it; otherwise Euler steps
    only. ``keeps_noise``: a step may keep old noise; otherwise all noise is new after every step but the last.
    """

    name: str
    two_times: bool = False
    has_velocity: bool = True
    keeps_noise: bool = True


POSTERIOR_MEAN = EstimateKind("posterior_mean")
"""The mean of the data given x_t: a flow."""
ENDPOINT = EstimateKind("endpoint", has_velocity=False, keeps_noise=False)
"""A sample of the data: the end of the trajectory through x_t (a consistency model), or matched in distribution."""
FLOW_MAP = EstimateKind("flow_map", two_times=True, has_velocity=False)
"""The point that a jump from t to s goes along: a flow map."""

ESTIMATES: dict[str, EstimateKind] = {kind.name: kind for kind in (POSTERIOR_MEAN, ENDPOINT, FLOW_MAP)}
"""By the name that a saved model has for it. An objective that declares another adds it here by itself."""
