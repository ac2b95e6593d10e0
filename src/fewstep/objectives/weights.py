"""How errors are weighed: by their size, and by what the readout makes of them. B batch, K positions, D dimension."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.readouts import ParallelReadout
from fewstep.schedules import upcast
from fewstep.shapes import masked_mean


@dataclass(frozen=True)
class AdaptiveWeight:
    """w = (e + ``floor``)^-``power`` for the squared error e of an example, without a gradient of its own.

    arXiv:2505.13447, eq. 22: power 0 is the plain squared error, 1/2 nearly the norm, 1 nearly its logarithm. Raises
    ``ValueError`` for a negative power or a floor that is not above 0.
    """

    power: float = 0.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if self.power < 0 or self.floor <= 0:
            raise ValueError(f"power {self.power}, floor {self.floor}: expected power >= 0 and floor > 0")

    def __call__(self, squared_error: Tensor) -> Tensor:
        """Weights (B,) for squared errors (B,)."""
        return (squared_error.detach() + self.floor) ** -self.power


def fisher_nats(readout: ParallelReadout, x_1: Tensor, error: Tensor, mask: Tensor) -> Tensor:
    """e' G e / 2 for errors e (B, K, D) of the latents ``x_1`` (B, K, D): (B,) nats per token.

    G = J' (diag p - p p') J is the readout's Fisher matrix at ``x_1``, J the Jacobian of its logits: to second order
    this is the divergence of the distributions over tokens before and after the error, so what crosses a boundary
    costs and what runs along it does not (this project's definition). ``mask`` (B, K). The gradient flows to ``error``.
    """
    with torch.autocast(x_1.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        logits, moved = torch.func.jvp(lambda z: upcast(readout(z, mask)), (x_1.detach(),), (error.to(x_1.dtype),))[:2]
    p = logits.detach().softmax(-1)
    variance = (p * moved.square()).sum(-1) - (p * moved).sum(-1).square()
    return 0.5 * masked_mean(variance, mask.repeat_interleave(variance.shape[1] // mask.shape[1], dim=1))
