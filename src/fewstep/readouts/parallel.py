"""Parallel categorical readouts: every token at once. B batch, L tokens, K positions, D latent dim, V vocabulary."""

import torch
from einops import rearrange
from torch import Tensor, nn

from fewstep.nn import Block, initialise
from fewstep.readouts.categorical import TokenDraw, draw_in_parts, draw_unknown, hidden_nats, rows_at_once, token_nats
from fewstep.shapes import Generators, check_sizes, latent_mask, masked_mean, rand
from fewstep.types import Ending, KnownTokens, Readout, TokenSample

START_SHARPNESS = 3.0
"""Standard deviation of the logits of tokens whose code has nothing to do with the latent."""


class ParallelReadout(nn.Module):
    """Latents to token logits, each position on its own draw: subclasses give ``forward(z, mask) -> logits`` (B, L, V).

    A subclass that sets ``vocab_size`` reads large batches in parts, so that their logits are not held all at once.
    """

    stride: int = 1
    vocab_size: int | None = None

    def logits(self, z: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, L, V) of ``z`` (B, K, D) with ``mask`` (B, K)."""
        return self(z, mask)

    def token_nats(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Negative log-likelihood (B, L) in nats of ``ids`` (B, L) under ``z`` (B, K, D) with ``mask`` (B, K)."""
        return token_nats(self(z, mask), ids)

    def loss(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Mean nats per real token (B,) of ``ids`` (B, L), ``mask`` (B, L) bool, under latents ``z`` (B, K, D)."""
        return masked_mean(self.token_nats(z, ids, latent_mask(mask, z.shape[1])), mask)

    def generate(
        self,
        z: Tensor,
        mask: Tensor,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        ending: Ending | None = None,
        known: KnownTokens | None = None,
        generator: Generators,
    ) -> TokenSample:
        """Tokens (B, L) of ``z`` (B, K, D), each position on its own; temperature 0 takes the likeliest.

        ``known`` ones stay. With ``ending`` what follows a row's first end-of-text is padding. Raises ``ValueError``
        where :func:`~fewstep.readouts.check_draw` does.
        """
        u = rand((len(z), z.shape[1] * self.stride), z, generator)
        draw = TokenDraw(temperature, top_p, top_k, ending, known)
        read = lambda z, mask, u, held: draw_unknown(self(z, mask), u, held, draw)  # noqa: E731
        return draw_in_parts(read, (z, mask, u), draw, u.shape[1] * (self.vocab_size or 0))


class LinearReadout(ParallelReadout):
    """One linear map from each latent to its tokens' logits."""

    def __init__(self, vocab_size: int, latent_dim: int, *, stride: int = 1) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "latent_dim": latent_dim, "stride": stride}
        check_sizes("LinearReadout", self.config)
        self.stride = stride
        self.vocab_size = vocab_size
        self.outputs = nn.Linear(latent_dim, stride * vocab_size)

    @torch.no_grad()
    def start_from(self, codes: Tensor) -> None:
        """Start with logits ``START_SHARPNESS`` z . c / sqrt(D), for ``codes`` c (V, D) of unit rms; stride 1."""
        self.outputs.weight.copy_(START_SHARPNESS * codes / codes.shape[1] ** 0.5)
        self.outputs.bias.zero_()

    def token_nats(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return hidden_nats(z, self.outputs, ids)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, L, V) of ``z`` (B, K, D) with ``mask`` (B, K)."""
        return rearrange(self.outputs(z), "b k (s v) -> b (k s) v", s=self.stride)


class TransformerReadout(ParallelReadout):
    """Transformer over token positions, so that an undecided position can use its neighbours' latents."""

    def __init__(
        self, vocab_size: int, latent_dim: int, *, stride: int = 1, width: int = 128, depth: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "latent_dim": latent_dim, "stride": stride}
        check_sizes("TransformerReadout", {**sizes, "width": width, "num_heads": num_heads})
        check_sizes("TransformerReadout", {"depth": depth}, least=0)
        self.config = {**sizes, "width": width, "depth": depth, "num_heads": num_heads}
        self.stride = stride
        self.vocab_size = vocab_size
        self.inputs = nn.Linear(latent_dim, stride * width)
        self.blocks = nn.ModuleList(Block(width, num_heads, local_reach=2) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.Linear(width, vocab_size)
        initialise(self)
        nn.init.normal_(self.inputs.weight, std=latent_dim**-0.5)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, L, V) of ``z`` (B, K, D) with ``mask`` (B, K)."""
        return self.outputs(self.hidden(z, mask))

    def token_nats(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return hidden_nats(self.hidden(z, mask), self.outputs, ids)

    def hidden(self, z: Tensor, mask: Tensor) -> Tensor:
        """Normed states (B, L, W) of ``z`` (B, K, D); ``mask`` (B, K) bool."""
        seen = mask.repeat_interleave(self.stride, dim=1)
        h = rearrange(self.inputs(z), "b k (s w) -> b (k s) w", s=self.stride)
        for block in self.blocks:
            h = block(h, seen)
        return self.norm(h)


@torch.no_grad()
def token_accuracy(readout: Readout, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Share of real tokens (scalar) that are the likeliest at their place; arguments as in ``readout.loss``."""
    size = rows_at_once(ids.shape[1] * (getattr(readout, "vocab_size", None) or 0))
    parts = zip(z.split(size), latent_mask(mask, z.shape[1]).split(size), strict=True)
    likeliest = torch.cat([readout.logits(*part).argmax(-1) for part in parts])
    return ((likeliest == ids) & mask).sum() / mask.sum().clamp(min=1)
