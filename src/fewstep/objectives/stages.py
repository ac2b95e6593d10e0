"""Losses of the stages beside the flow: autoencoders, commitment head. B batch, L tokens, K positions, D dimension."""

from typing import Any

import torch
from torch import Tensor

from fewstep.readouts import CommitmentHead
from fewstep.shapes import expand_like, rand, randn
from fewstep.types import LatentEncoder, Latents, LossOutput, Readout, TokenBatch


class Reconstruction:
    """Cross-entropy of the readout on noised latents of partly masked tokens.

    ``noise_level_max`` (rms of the unit-variance latent): each example gets a level uniform in [0, max].
    ``token_masking``: probability that the encoder does not see a token, which must then be inferred from its context.

    An encoder with a method ``posterior`` (:class:`fewstep.autoencoders.VariationalAutoencoder`) is trained on a sample
    of it, and ``kl_weight`` multiplies the KL divergence to the standard normal in nats per token (the beta of
    beta-VAE; 1 is the evidence lower bound, arXiv:1312.6114, eq. 10).
    """

    def __init__(self, *, noise_level_max: float = 1.0, token_masking: float = 0.0, kl_weight: float = 0.0) -> None:
        if not noise_level_max >= 0 or not 0 <= token_masking < 1 or not kl_weight >= 0:
            raise ValueError(
                f"noise_level_max {noise_level_max}, token_masking {token_masking}, kl_weight {kl_weight}: "
                "expected a level and a weight >= 0 and a probability in [0, 1)"
            )
        self.noise_level_max = noise_level_max
        self.token_masking = token_masking
        self.kl_weight = kl_weight

    def forward(
        self, autoencoder: LatentEncoder, readout: Readout, tokens: TokenBatch, *, generator: torch.Generator
    ) -> LossOutput:
        """Mean nats per token over the batch, the weighted KL divergence included; ``per_example`` (B,).

        Token masking needs an encoder whose ``encode`` takes the hidden tokens (B, L) as a third argument.
        """
        given = [tokens.ids, tokens.mask]
        if self.token_masking > 0:
            given.append(rand(tuple(tokens.ids.shape), tokens.ids, generator) < self.token_masking)
        encoder: Any = autoencoder
        posterior = encoder.posterior(*given) if hasattr(encoder, "posterior") else None
        z = encoder.encode(*given).z if posterior is None else posterior.sample(generator).z
        z, _ = noised(z, self.noise_level_max, generator)
        nats = readout.loss(z, tokens.ids, tokens.mask)
        if posterior is None:
            return LossOutput(nats.mean(), nats.detach())
        kl_nats = posterior.kl_nats() / tokens.mask.sum(-1).clamp(min=1)
        per_example = nats + self.kl_weight * kl_nats
        terms = {"reconstruction_nats": nats.mean().detach(), "kl_nats": kl_nats.mean().detach()}
        return LossOutput(per_example.mean(), per_example.detach(), terms)


class HeadTraining:
    """Next-token cross-entropy given latents with isotropic noise.

    Each example's level is uniform in [0, ``noise_level_max``] (rms), past the level at which a parallel readout
    breaks, so that the head relies on its own tokens where the latent is undecided. ``prefix_dropout``: probability
    that an example's earlier tokens are hidden from the head, so that decoding without them is a trained state.
    """

    def __init__(self, *, noise_level_max: float = 2.0, prefix_dropout: float = 0.0) -> None:
        if not noise_level_max >= 0 or not 0 <= prefix_dropout < 1:
            raise ValueError(
                f"noise_level_max {noise_level_max}, prefix_dropout {prefix_dropout}: expected a level >= 0 and a "
                "probability in [0, 1)"
            )
        self.noise_level_max = noise_level_max
        self.prefix_dropout = prefix_dropout

    def forward(
        self, head: CommitmentHead, latents: Latents, *, tokens: TokenBatch, generator: torch.Generator
    ) -> LossOutput:
        """Mean nats per token over the batch; ``per_example`` (B,)."""
        z, level = noised(latents.z, self.noise_level_max, generator)
        sees_tokens = None
        if self.prefix_dropout > 0:
            sees_tokens = rand((len(z),), z, generator) >= self.prefix_dropout
        per_example = head.loss(z * latents.mask[..., None], tokens.ids, tokens.mask, level, sees_tokens)
        return LossOutput(per_example.mean(), per_example.detach())


def noised(z: Tensor, level_max: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents (B, ...) with white noise, and its rms (B,), drawn from the uniform law on [0, ``level_max``]."""
    level = level_max * rand((len(z),), z, generator)
    return z + expand_like(level, z) * randn(tuple(z.shape), z, generator), level
