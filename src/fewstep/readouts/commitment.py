"""The categorical commitment head: an autoregressive readout (escape one of arXiv:2606.30705)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from fewstep.readouts.categorical import token_nats
from fewstep.readouts.causal import CausalTransformer
from fewstep.readouts.decoding import decode_cached
from fewstep.shapes import Generators, masked_mean, rand, randn
from fewstep.types import TokenSample


class CommitmentHead(nn.Module):
    """Reads latents out token by token, each token committed to before the next is chosen.

    B batch, L tokens, K positions, D latent dimension. The head is trained on latents with isotropic noise up to and
    past the level at which a parallel readout breaks, and told that level. ``trust_level`` (rms) is the level that
    :meth:`generate` blurs given latents to: 0 follows them to the letter, larger values lean on the head's own words.
    Raises ``ValueError`` if the network has no latents.
    """

    def __init__(self, network: CausalTransformer, *, trust_level: float = 0.5) -> None:
        super().__init__()
        if network.latents is None:
            raise ValueError("a commitment head needs a network with latents: pass latent_dim to CausalTransformer")
        if trust_level < 0:
            raise ValueError(f"trust_level is {trust_level}, expected a noise level >= 0 (rms)")
        self.network = network
        self.trust_level = trust_level

    def logits(self, z: Tensor, mask: Tensor, ids: Tensor, noise_level: Tensor) -> Tensor:
        """Teacher-forced logits (B, L, V) of ``ids`` (B, L) given latents that hold noise of ``noise_level`` (B,)."""
        return self.network(self.network.shifted(ids), self.network.context(z, mask, noise_level))

    def loss(self, z: Tensor, ids: Tensor, mask: Tensor, noise_level: Tensor | None = None) -> Tensor:
        """Mean nats per real token (B,). ``z`` (B, K, D) already holds its noise; level None means clean."""
        level = torch.zeros(len(z), device=z.device) if noise_level is None else noise_level
        latent_mask = rearrange(mask, "b (k s) -> b k s", s=self.network.stride).any(-1)
        logits = self.logits(z, latent_mask, ids, level)
        nats = token_nats(logits, ids)
        return masked_mean(nats, mask)

    @torch.no_grad()
    def generate(
        self, z: Tensor, mask: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, generator: Generators
    ) -> TokenSample:
        """Tokens (B, L) for latents ``z`` (B, K, D), which are first blurred to ``trust_level``."""
        level = torch.full((len(z),), self.trust_level, device=z.device)
        blurred = z + self.trust_level * randn(tuple(z.shape), z, generator) if self.trust_level > 0 else z
        u = rand((len(z), z.shape[1] * self.network.stride), z, generator)
        return self.read(blurred, mask, u, level, temperature=temperature, top_p=top_p)

    @torch.no_grad()
    def read(
        self, z: Tensor, mask: Tensor, u: Tensor, noise_level: Tensor, *, temperature: float, top_p: float
    ) -> TokenSample:
        """Tokens (B, L) for latents ``z`` (B, K, D) that hold noise of ``noise_level`` (B,) already.

        ``u`` (B, L), uniform on [0, 1), decides the draws. Nothing is blurred here.
        """
        context = self.network.context(z, mask, noise_level)
        return decode_cached(self.network, u, context, temperature=temperature, top_p=top_p)
