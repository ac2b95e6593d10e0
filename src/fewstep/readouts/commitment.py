"""The categorical commitment head: an autoregressive readout (escape one of arXiv:2606.30705)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from fewstep.readouts.categorical import draw_tokens
from fewstep.readouts.causal import CausalTransformer
from fewstep.readouts.decoding import decode_cached
from fewstep.readouts.ending import Ending, ended
from fewstep.shapes import Generators, masked_mean, rand, randn
from fewstep.types import TokenSample


class CommitmentHead(nn.Module):
    """Reads latents out token by token, each token committed to before the next is chosen.

    B batch, L tokens, K positions, D latent dimension. The head is trained on latents with isotropic noise up to and
    past the level at which a parallel readout breaks, and told that level. ``trust_level`` (rms) is the level that
    :meth:`generate` blurs given latents to: 0 follows them to the letter, larger values lean on the head's own words.

    With ``commitment`` off the same network is cut off from earlier tokens, for the ablation: begin-of-block stands in
    the place of each, so that logits depend on the latents alone, and all tokens are drawn independently in one pass.
    That is a fair state only of a network that was trained with prefix dropout
    (:class:`fewstep.objectives.HeadTraining`). Raises ``ValueError`` if the network has no latents.
    """

    def __init__(self, network: CausalTransformer, *, trust_level: float = 0.5, commitment: bool = True) -> None:
        super().__init__()
        if network.latents is None:
            raise ValueError("a commitment head needs a network with latents: pass latent_dim to CausalTransformer")
        if trust_level < 0:
            raise ValueError(f"trust_level is {trust_level}, expected a noise level >= 0 (rms)")
        self.network = network
        self.trust_level = trust_level
        self.commitment = commitment

    def with_commitment(self, commitment: bool) -> "CommitmentHead":
        """The same network as a head with its view of earlier tokens on or off."""
        return CommitmentHead(self.network, trust_level=self.trust_level, commitment=commitment)

    def logits(
        self, z: Tensor, mask: Tensor, ids: Tensor, noise_level: Tensor, sees_tokens: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced logits (B, L, V) of ``ids`` (B, L) given latents that hold noise of ``noise_level`` (B,).

        ``sees_tokens`` (B,) bool is false at rows without a view of earlier tokens; None means all see them. With
        commitment off no row does.
        """
        return self.network(self._inputs(ids, sees_tokens), self.network.context(z, mask, noise_level))

    def _inputs(self, ids: Tensor, sees_tokens: Tensor | None) -> Tensor:
        inputs = self.network.shifted(ids) if self.commitment else self.network.unseen(ids)
        if sees_tokens is not None:
            inputs = torch.where(sees_tokens[:, None], inputs, self.network.unseen(ids))
        return inputs

    def token_nats(
        self, z: Tensor, ids: Tensor, mask: Tensor, noise_level: Tensor, sees_tokens: Tensor | None = None
    ) -> Tensor:
        """Negative log-likelihood of every token (B, L) in nats; ``mask`` (B, L), the rest as in :meth:`logits`."""
        latent_mask = rearrange(mask, "b (k s) -> b k s", s=self.network.stride).any(-1)
        context = self.network.context(z, latent_mask, noise_level)
        return self.network.token_nats(self._inputs(ids, sees_tokens), ids, context)

    def loss(
        self,
        z: Tensor,
        ids: Tensor,
        mask: Tensor,
        noise_level: Tensor | None = None,
        sees_tokens: Tensor | None = None,
    ) -> Tensor:
        """Mean nats per real token (B,). ``z`` (B, K, D) already holds its noise; level None means clean."""
        level = torch.zeros(len(z), device=z.device) if noise_level is None else noise_level
        return masked_mean(self.token_nats(z, ids, mask, level, sees_tokens), mask)

    @torch.no_grad()
    def generate(
        self,
        z: Tensor,
        mask: Tensor,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        ending: Ending | None = None,
        generator: Generators,
    ) -> TokenSample:
        """Tokens (B, L) for latents ``z`` (B, K, D), which are first blurred to ``trust_level``.

        With ``ending`` what follows a row's first end-of-text is padding, and is not computed. Raises ``ValueError``
        where :func:`~fewstep.readouts.draw_tokens` does.
        """
        level = torch.full((len(z),), self.trust_level, device=z.device)
        blurred = z + self.trust_level * randn(tuple(z.shape), z, generator) if self.trust_level > 0 else z
        u = rand((len(z), z.shape[1] * self.network.stride), z, generator)
        return self.read(blurred, mask, u, level, temperature=temperature, top_p=top_p, top_k=top_k, ending=ending)

    @torch.no_grad()
    def read(
        self,
        z: Tensor,
        mask: Tensor,
        u: Tensor,
        noise_level: Tensor,
        *,
        temperature: float,
        top_p: float,
        top_k: int | None = None,
        ending: Ending | None = None,
    ) -> TokenSample:
        """Tokens (B, L) for latents ``z`` (B, K, D) that hold noise of ``noise_level`` (B,) already.

        ``u`` (B, L), uniform on [0, 1), decides the draws. Nothing is blurred here.
        """
        if not self.commitment:
            logits = self.logits(z, mask, torch.zeros_like(u, dtype=torch.long), noise_level)
            return ended(*draw_tokens(logits, u, temperature=temperature, top_p=top_p, top_k=top_k), ending)
        context = self.network.context(z, mask, noise_level)
        return decode_cached(self.network, u, context, temperature=temperature, top_p=top_p, top_k=top_k, ending=ending)
