"""The readouts of a text model as callables. B examples, K latent positions of D dimensions, L tokens, V vocabulary.

Every latent position counts as real.
"""

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode
from fewstep.readouts import CommitmentHead
from fewstep.shapes import rand
from fewstep.types import Readout


def all_real(z: Tensor) -> Tensor:
    """A mask (B, K) that is true everywhere, for latents ``z`` (B, K, D)."""
    return torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)


def decoder_of(readout: Readout) -> Decode:
    """Latents (B, K, D) to the parallel readout's logits (B, L, V)."""
    return lambda z: readout.logits(z, all_real(z))


class HeadConditionals:
    """A commitment head at latents that hold noise of ``level`` (rms), which it is given.

    Unlike :meth:`~fewstep.readouts.CommitmentHead.generate` it adds no noise: it reads what it is given.
    """

    def __init__(self, head: CommitmentHead, level: float) -> None:
        self.head = head
        self.level = level

    @torch.no_grad()
    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens (B, L) at temperature 1 for latents (B, K, D)."""
        u = rand((len(z), z.shape[1] * self.head.network.stride), z, generator)
        return self.head.read(z, all_real(z), u, self._levels(z), temperature=1.0, top_p=1.0).ids

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of each of ``ids`` (B, L), given the latents and the ids before it."""
        return self.head.logits(z, all_real(z), ids, self._levels(z))

    def given(self, ids: Tensor) -> Decode:
        """The head as a decoder whose earlier tokens are held at ``ids`` (B, L)."""
        return lambda z: self.logits(z, ids)

    def _levels(self, z: Tensor) -> Tensor:
        return torch.full((len(z),), self.level, device=z.device)
