"""Stage three: the commitment head over the latents."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch

from fewstep.bundle import Identity
from fewstep.objectives import CommitmentTraining
from fewstep.readouts import CausalTransformer, CommitmentHead
from fewstep.training.data_module import TextDataModule
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.stage import Stage, load_base
from fewstep.types import LossOutput, TokenBatch


class CommitmentModule(Stage):
    """Trains a causal transformer to read latents out token by token.

    ``autoencoder`` is a folder or checkpoint with one (and usually a denoiser, which is carried along).
    ``network`` is made from (V,) with ``latent_dim`` and ``stride`` filled in. ``trust_level`` (rms) is the noise
    level at which generation reads latents by default. ``language_model`` is a folder or checkpoint whose language
    model, of the same tokenizer, width and depth, the head starts from; None starts anew. Raises ``UserError`` where
    parts and data do not fit.
    """

    trained: ClassVar[tuple[str, ...]] = ("commitment",)
    stage_name: ClassVar[str] = "commitment"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: str,
        network: Callable[[int], CausalTransformer],
        objective: CommitmentTraining,
        language_model: str | None = None,
        trust_level: float = 0.5,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, load_base(autoencoder, data, "autoencoder"))
        encoder = self.base.autoencoder
        assert encoder is not None
        make: Callable[..., CausalTransformer] = network  # the parser wants to know how many values it will be given
        self.commitment = make(len(data.tokenizer), latent_dim=encoder.latent_dim, stride=encoder.stride)
        if language_model is not None:
            scorer = load_base(language_model, data, "language_model").language_model
            assert scorer is not None
            self.commitment.start_from(scorer)
        self.trust_level = trust_level
        self.objective = objective

    def identity(self) -> Identity:
        """The identity with the head's trust level."""
        return replace(super().identity(), trust_level=self.trust_level)

    def compute_loss(self, tokens: TokenBatch, index: torch.Tensor, generator: torch.Generator) -> LossOutput:
        """Nats per token of the head on noised latents."""
        assert self.base.autoencoder is not None
        with torch.no_grad():
            latents = self.base.autoencoder.encode(tokens.ids, tokens.mask)
        head = CommitmentHead(self.commitment, trust_level=self.trust_level)
        return self.objective.forward(head, latents, tokens=tokens, generator=generator)
