"""The run's own language model: the baseline to beat, and the scorer. B batch, L tokens."""

import torch
from torch import Tensor, nn

from fewstep.readouts.causal import CausalTransformer
from fewstep.readouts.decoding import decode_cached
from fewstep.readouts.ending import Ending
from fewstep.shapes import Generators, masked_mean, rand
from fewstep.types import TokenSample


class LanguageModel(nn.Module):
    """A causal transformer without latents. Raises ``ValueError`` if the network was built with them."""

    def __init__(self, network: CausalTransformer) -> None:
        super().__init__()
        if network.latents is not None:
            raise ValueError("a language model has no latents: build its CausalTransformer with latent_dim=None")
        self.network = network

    def token_nats(self, ids: Tensor) -> Tensor:
        """Negative log-likelihood of every token (B, L) given the ones before it, in nats, float32."""
        return self.network.token_nats(self.network.shifted(ids), ids)

    def loss(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Mean nats per real token (B,); ``mask`` (B, L)."""
        return masked_mean(self.token_nats(ids), mask)

    @torch.no_grad()
    def generate(
        self,
        num_samples: int,
        num_tokens: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        ending: Ending | None = None,
        generator: Generators,
    ) -> TokenSample:
        """Draw ``num_samples`` blocks of ``num_tokens``, each up to its end-of-text where ``ending`` is given.

        Raises ``ValueError`` where :func:`~fewstep.readouts.draw_tokens` does.
        """
        u = rand((num_samples, num_tokens), self.network.embedding.weight, generator)
        return decode_cached(self.network, u, None, temperature=temperature, top_p=top_p, top_k=top_k, ending=ending)
