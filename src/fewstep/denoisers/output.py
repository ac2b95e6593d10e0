"""What a denoising network gives back."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DenoiserOutput:
    """``value`` (B, K, D), in the space the network predicts (x_1 or velocity), at least float32.

    ``token_logits`` (B, K, V) if the network reaches its value through a distribution over tokens, else None.
    """

    value: Tensor
    token_logits: Tensor | None = None
