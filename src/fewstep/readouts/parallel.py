"""Parallel categorical readouts: every token at once. B batch, L tokens, K positions, D latent dim, V vocabulary."""

import torch
from einops import rearrange
from torch import Tensor, nn

from fewstep.nn import Block, initialise
from fewstep.readouts.categorical import draw_tokens, token_nats
from fewstep.readouts.ending import Ending, ended
from fewstep.shapes import Generators, masked_mean, rand
from fewstep.types import TokenSample


class ParallelReadout(nn.Module):
    """Latents to token logits without any order: subclasses give ``forward(z, mask) -> logits`` (B, L, V)."""

    stride: int

    def token_mask(self, mask: Tensor) -> Tensor:
        """The mask (B, L) of the tokens that latents with ``mask`` (B, K) stand for."""
        return mask.repeat_interleave(self.stride, dim=1)

    def loss(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Mean nats per real token (B,) for ``ids`` (B, L) under latents ``z`` (B, K, D); ``mask`` (B, L) bool."""
        latent_mask = rearrange(mask, "b (k s) -> b k s", s=self.stride).any(-1)
        logits = self(z, latent_mask)
        nats = token_nats(logits, ids)
        return masked_mean(nats, mask)

    def generate(
        self,
        z: Tensor,
        mask: Tensor,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        ending: Ending | None = None,
        generator: Generators,
    ) -> TokenSample:
        """Tokens (B, L) of ``z`` (B, K, D), each position on its own; temperature 0 takes the likeliest.

        With ``ending`` what follows a row's first end-of-text is padding. Raises ``ValueError`` where
        :func:`~fewstep.readouts.draw_tokens` does.
        """
        logits = self(z, mask)
        u = rand(tuple(logits.shape[:2]), z, generator)
        return ended(*draw_tokens(logits, u, temperature=temperature, top_p=top_p, top_k=top_k), ending)


class LinearReadout(ParallelReadout):
    """One linear map from each latent to its tokens' logits."""

    def __init__(self, vocab_size: int, latent_dim: int, *, stride: int = 1) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "latent_dim": latent_dim, "stride": stride}
        self.stride = stride
        self.outputs = nn.Linear(latent_dim, stride * vocab_size)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, L, V) of ``z`` (B, K, D)."""
        return rearrange(self.outputs(z), "b k (s v) -> b (k s) v", s=self.stride)


class TransformerReadout(ParallelReadout):
    """Transformer over token positions, so that a position in doubt can lean on its neighbours' latents."""

    def __init__(
        self,
        vocab_size: int,
        latent_dim: int,
        *,
        stride: int = 1,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.config = {
            "vocab_size": vocab_size,
            "latent_dim": latent_dim,
            "stride": stride,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
        }
        self.stride = stride
        self.inputs = nn.Linear(latent_dim, stride * width)
        self.blocks = nn.ModuleList(Block(width, num_heads, local_reach=2) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.Linear(width, vocab_size)
        initialise(self)
        nn.init.normal_(self.inputs.weight, std=latent_dim**-0.5)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, L, V) of ``z`` (B, K, D); ``mask`` (B, K) bool."""
        seen = self.token_mask(mask)
        h = rearrange(self.inputs(z), "b k (s w) -> b (k s) w", s=self.stride)
        for block in self.blocks:
            h = block(h, seen)
        return self.outputs(self.norm(h))


@torch.no_grad()
def token_accuracy(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Share of real tokens (scalar) whose argmax logit (B, L, V) is the token in ``ids`` (B, L); ``mask`` (B, L)."""
    right = (logits.argmax(-1) == ids) & mask
    return right.sum() / mask.sum().clamp(min=1)
