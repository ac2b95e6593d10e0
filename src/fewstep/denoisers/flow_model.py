"""One meaning of a denoiser, whatever its network predicts. B batch, K positions, D latent dimension, V vocabulary."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from fewstep.paths import Path

PredictionType = Literal["x1", "velocity"]


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
    """What the clean estimate of a trained model is.

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


class FlowModel(nn.Module):
    """A network, the path it was trained on and what it predicts, offered as ``denoise`` and ``velocity``.

    Times are (B,) float32, 0 at noise and 1 at data. A network of two times is a flow map: its estimate for (t, s) is
    the x_1 towards which the jump X(t, s) goes, so that

        X(t, s) = alpha_s x1_hat + sigma_s (x_t - alpha_t x1_hat) / sigma_t.

    At s = t the estimate is that of an ordinary flow. On the linear path (x1_hat - x_t) / (1 - t) is the mean velocity
    of arXiv:2505.13447, eq. 3.
    """

    def __init__(self, network: nn.Module, path: Path, prediction: PredictionType) -> None:
        super().__init__()
        if prediction not in ("x1", "velocity"):
            raise ValueError(f"prediction is {prediction!r}, expected 'x1' or 'velocity'")
        self.network = network
        self.path = path
        self.prediction = prediction

    @property
    def two_times(self) -> bool:
        """Whether the network sees where a jump ends."""
        return bool(getattr(self.network, "config", {}).get("two_times", False))

    @property
    def reads_known(self) -> bool:
        """Whether the network was built to see positions that are known."""
        return bool(getattr(self.network, "config", {}).get("reads_known", False))

    def rows(self, index: slice | Tensor) -> "FlowModel":
        """The flow for some examples of a batch; they matter to one with known positions only."""
        return self

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        """The network's own output, its ``value`` (B, K, D) in the space of ``prediction``."""
        return self.network(x_t, t, s, mask=mask, self_cond=self_cond)

    def x1_of(self, output: DenoiserOutput, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean estimate x1_hat (B, K, D) that an output stands for."""
        return output.value if self.prediction == "x1" else self.path.x1_from_velocity(x_t, output.value, t)

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        s: Tensor | None = None,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        """The clean estimate x1_hat (B, K, D). A network of one time ignores ``s`` (B,), where the jump ends."""
        s = s if self.two_times else None
        return self.x1_of(self.predict(x_t, t, s, mask=mask, self_cond=self_cond), x_t, t)

    def velocity(
        self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None
    ) -> Tensor:
        """dx/dt (B, K, D) of the deterministic flow."""
        output = self.predict(x_t, t, mask=mask, self_cond=self_cond)
        return output.value if self.prediction == "velocity" else self.path.velocity_from_x1(x_t, output.value, t)
