"""Parallel categorical readouts: every token at once. B batch, L tokens, K positions, D latent dim, V vocabulary."""

import torch
from einops import rearrange
from torch import Tensor, nn

from fewstep.nn import Block, initialise
from fewstep.readouts.categorical import MAX_LOGITS, draw_tokens, hidden_nats, token_nats
from fewstep.readouts.ending import Ending, ended
from fewstep.shapes import Generators, check_sizes, masked_mean, rand
from fewstep.types import TokenSample


class ParallelReadout(nn.Module):
    """Latents to token logits without any order: subclasses give ``forward(z, mask) -> logits`` (B, L, V).

    One that tells its ``vocab_size`` writes large batches part by part, so that their logits are not held all at once;
    for the loss it gives ``token_nats`` to this end.
    """

    stride: int
    vocab_size: int | None = None

    def token_mask(self, mask: Tensor) -> Tensor:
        """The mask (B, L) of the tokens that latents with ``mask`` (B, K) stand for."""
        return mask.repeat_interleave(self.stride, dim=1)

    def logits(self, z: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, L, V) of ``z`` (B, K, D) with ``mask`` (B, K)."""
        return self(z, mask)

    def loss(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Mean nats per real token (B,) for ``ids`` (B, L) under latents ``z`` (B, K, D); ``mask`` (B, L) bool."""
        latent_mask = rearrange(mask, "b (k s) -> b k s", s=self.stride).any(-1)
        return masked_mean(self.token_nats(z, ids, latent_mask), mask)

    def token_nats(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Negative log-likelihood (B, L) in nats of ``ids`` (B, L) under ``z`` (B, K, D) with their ``mask`` (B, K)."""
        return token_nats(self(z, mask), ids)

    @torch.no_grad()
    def token_accuracy(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Share of real tokens (scalar) that are the likeliest at their place; arguments as in :meth:`loss`."""
        latent_mask = rearrange(mask, "b (k s) -> b k s", s=self.stride).any(-1)
        parts = [self(z[rows], latent_mask[rows]).argmax(-1) for rows in self._parts(z)]
        return ((torch.cat(parts) == ids) & mask).sum() / mask.sum().clamp(min=1)

    def _parts(self, z: Tensor) -> list[slice]:
        """Examples of ``z`` (B, K, D) in parts whose logits may be held at once."""
        size = max(1, len(z))
        if self.vocab_size is not None:
            size = max(1, MAX_LOGITS // (z.shape[1] * self.stride * self.vocab_size))
        return [slice(start, start + size) for start in range(0, max(1, len(z)), size)]

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
        u = rand((len(z), z.shape[1] * self.stride), z, generator)
        parts = [
            draw_tokens(self(z[rows], mask[rows]), u[rows], temperature=temperature, top_p=top_p, top_k=top_k)
            for rows in self._parts(z)
        ]
        ids, log_probs = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return ended(ids, log_probs, ending)


class LinearReadout(ParallelReadout):
    """One linear map from each latent to its tokens' logits. Raises ``ValueError`` for sizes that are none."""

    def __init__(self, vocab_size: int, latent_dim: int, *, stride: int = 1) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "latent_dim": latent_dim, "stride": stride}
        check_sizes("LinearReadout", self.config)
        self.stride = stride
        self.vocab_size = vocab_size
        self.outputs = nn.Linear(latent_dim, stride * vocab_size)

    def token_nats(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """As of :class:`ParallelReadout`, part by part (:func:`~fewstep.readouts.hidden_nats`)."""
        return hidden_nats(z, self.outputs, ids)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, L, V) of ``z`` (B, K, D)."""
        return rearrange(self.outputs(z), "b k (s v) -> b (k s) v", s=self.stride)


class TransformerReadout(ParallelReadout):
    """Transformer over token positions, so that a position in doubt can lean on its neighbours' latents.

    Raises ``ValueError`` for sizes that are none.
    """

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
        """Logits (B, L, V) of ``z`` (B, K, D); ``mask`` (B, K) bool."""
        return self.outputs(self.hidden(z, mask))

    def token_nats(self, z: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """As of :class:`ParallelReadout`, part by part (:func:`~fewstep.readouts.hidden_nats`)."""
        return hidden_nats(self.hidden(z, mask), self.outputs, ids)

    def hidden(self, z: Tensor, mask: Tensor) -> Tensor:
        """States (B, L, W), normed, of ``z`` (B, K, D); ``mask`` (B, K) bool."""
        seen = self.token_mask(mask)
        h = rearrange(self.inputs(z), "b k (s w) -> b (k s) w", s=self.stride)
        for block in self.blocks:
            h = block(h, seen)
        return self.norm(h)


@torch.no_grad()
def token_accuracy(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Share of real tokens (scalar) whose argmax logit (B, L, V) is the token in ``ids`` (B, L); ``mask`` (B, L)."""
    right = (logits.argmax(-1) == ids) & mask
    return right.sum() / mask.sum().clamp(min=1)
