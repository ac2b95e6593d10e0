"""An encoder and a readout from outside the package: they inherit nothing of ours."""

from typing import Any

from torch import Tensor, nn

from fewstep.readouts import ParallelReadout
from fewstep.types import Latents


class BagOfEmbeddings(nn.Module):
    """Each token's embedding is its latent."""

    def __init__(self, vocab_size: int, latent_dim: int = 4) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"vocab_size": vocab_size, "latent_dim": latent_dim}
        self.latent_dim = latent_dim
        self.table = nn.Embedding(vocab_size, latent_dim)

    def num_latents(self, num_tokens: int) -> int:
        return num_tokens

    def encode(self, ids: Tensor, mask: Tensor) -> Latents:
        return Latents(self.table(ids), mask)


class MatrixReadout(ParallelReadout):
    """Logits by one matrix."""

    stride = 1

    def __init__(self, vocab_size: int, latent_dim: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"vocab_size": vocab_size, "latent_dim": latent_dim}
        self.vocab_size = vocab_size
        self.matrix = nn.Linear(latent_dim, vocab_size)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        return self.matrix(z)
