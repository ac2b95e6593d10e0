"""The commitment head: an autoregressive readout of latents (escape one of arXiv:2606.30705).

B batch, L tokens, K positions, D latent dimension, V vocabulary.
"""

import torch
from torch import Tensor, nn

from fewstep.readouts.categorical import Held, TokenDraw, cut_at_end, draw_unknown, hidden_nats
from fewstep.readouts.causal import CausalTransformer, decode_cached
from fewstep.shapes import Generators, latent_mask, masked_mean, rand, randn
from fewstep.types import Ending, KnownTokens, TokenSample


class CommitmentHead(nn.Module):
    """Reads latents token by token, each token committed to before the next is chosen.

    The head is trained on latents with isotropic noise and knows its level. ``trust_level`` (rms) is the level that
    :meth:`generate` blurs latents to: 0 follows them to the letter, larger values lean on the head's own words.

    With ``sees_tokens`` False, for the ablation, logits depend on the latents alone, and all tokens are drawn in one
    pass. Only a network trained with prefix dropout (:class:`fewstep.objectives.HeadTraining`) knows this state.
    """

    def __init__(self, network: CausalTransformer, trust_level: float = 0.5, *, sees_tokens: bool = True) -> None:
        super().__init__()
        if network.latents is None:
            raise ValueError("a commitment head needs a network with latents: pass latent_dim to CausalTransformer")
        if trust_level < 0:
            raise ValueError(f"trust_level is {trust_level}, expected a noise level >= 0 (rms)")
        self.network = network
        self.trust_level = trust_level
        self.sees_tokens = sees_tokens

    def logits(self, z: Tensor, mask: Tensor, ids: Tensor, noise_level: Tensor) -> Tensor:
        """Teacher-forced logits (B, L, V) of ``ids`` (B, L) given latents that hold noise of ``noise_level`` (B,)."""
        return self.network(self._inputs(ids), self.network.context(z, mask, noise_level))

    def token_nats(
        self, z: Tensor, ids: Tensor, mask: Tensor, noise_level: Tensor, sees_tokens: Tensor | None = None
    ) -> Tensor:
        """Negative log-likelihood (B, L) of every token in nats; ``mask`` (B, L), the rest as in :meth:`logits`.

        ``sees_tokens`` (B,) bool is false at rows that do not see earlier tokens.
        """
        context = self.network.context(z, latent_mask(mask, z.shape[1]), noise_level)
        hidden = self.network.hidden(self._inputs(ids, sees_tokens), context)
        return hidden_nats(hidden, self.network.outputs, ids)

    def loss(
        self, z: Tensor, ids: Tensor, mask: Tensor, noise_level: Tensor | None = None, sees_tokens: Tensor | None = None
    ) -> Tensor:
        """Mean nats per real token (B,). ``z`` (B, K, D) already holds its noise; level None: clean."""
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
        known: KnownTokens | None = None,
        generator: Generators,
    ) -> TokenSample:
        """Tokens (B, L) for latents ``z`` (B, K, D), which are first blurred to ``trust_level``; see :meth:`read`."""
        level = torch.full((len(z),), self.trust_level, device=z.device)
        blurred = z + self.trust_level * randn(tuple(z.shape), z, generator) if self.trust_level > 0 else z
        u = rand((len(z), z.shape[1] * self.network.stride), z, generator)
        return self.read(blurred, mask, u, level, TokenDraw(temperature, top_p, top_k, ending, known))

    @torch.no_grad()
    def read(self, z: Tensor, mask: Tensor, u: Tensor, noise_level: Tensor, draw: TokenDraw) -> TokenSample:
        """Tokens (B, L) for latents ``z`` (B, K, D) that hold noise of ``noise_level`` (B,); nothing is blurred here.

        ``u`` (B, L), uniform on [0, 1), decides the draws. Raises ``ValueError`` where
        :func:`~fewstep.readouts.check_draw` does.
        """
        if not self.sees_tokens:
            logits = self.logits(z, mask, torch.zeros_like(u, dtype=torch.long), noise_level)
            return cut_at_end(*draw_unknown(logits, u, Held.of(draw.known), draw), draw.ending)
        return decode_cached(self.network, u, self.network.context(z, mask, noise_level), draw)

    def _inputs(self, ids: Tensor, sees_tokens: Tensor | None = None) -> Tensor:
        nobody = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        return self.network.shift_right(ids, sees_tokens if self.sees_tokens else nobody)
