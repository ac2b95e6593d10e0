"""Stages that train a causal transformer: the head over the latents, and the language model as baseline and scorer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.data import vocabulary_size
from fewstep.errors import UserError
from fewstep.model import Identity
from fewstep.objectives import HeadTraining
from fewstep.pipeline import check_sampler
from fewstep.readouts import CausalTransformer, CommitmentHead, LanguageModel
from fewstep.samplers import FlowSampler, default_sampling
from fewstep.shapes import rand, randn
from fewstep.training.data_modules import Batch, TextDataModule
from fewstep.training.module import DEFAULT_OPTIMIZER, OptimizerSettings, TrainingModule, tokens_of
from fewstep.training.run_folder import weights_digest
from fewstep.types import Latents, LossOutput


class HeadModule(TrainingModule):
    """Trains a causal transformer to read latents out token by token.

    ``autoencoder`` is a model folder or checkpoint with one, and usually with a denoiser. ``network`` is made from (V,)
    with ``latent_dim`` and ``stride`` filled in. ``trust_level`` (rms) is the noise level at which generation reads
    latents by default. ``language_model`` is a model whose language model, of the same tokenizer, width and depth, the
    head starts from; None: from scratch. If the objective has a ``generated_share``, the frozen denoiser samples in
    ``generated_steps`` steps. ``allow`` names packages beside fewstep whose classes these models may have. Raises
    ``UserError`` if parts and data do not fit.
    """

    trained: ClassVar[tuple[str, ...]] = ("head",)
    stage_name: ClassVar[str] = "head"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: str,
        network: Callable[[int], CausalTransformer],
        objective: HeadTraining,
        language_model: str | None = None,
        trust_level: float = 0.5,
        generated_steps: int = 4,
        allow: list[str] | None = None,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        generates = objective.generated_share > 0
        needed = ("autoencoder", "denoiser") if generates else ("autoencoder",)
        super().__init__(data, optimizer, seed, data.load_model(autoencoder, *needed, allow=allow or ()))
        if generates:
            check_generation(self.base.identity, generated_steps)
        self.generated_steps = generated_steps
        positions, latent_dim = self.base.latent_shape()
        make: Callable[..., CausalTransformer] = network  # the parser must know the number of positional arguments
        vocab_size, stride = vocabulary_size(data.corpus.tokenizer), data.block_size // positions
        self.head = make(vocab_size, latent_dim=latent_dim, stride=stride)
        if language_model is not None:
            scorer = data.load_model(language_model, "language_model", allow=allow or ()).language_model
            assert scorer is not None
            self.head.start_from(scorer)
            self.fingerprints["model.language_model"] = weights_digest({"language_model": scorer.state_dict()})
        self.trust_level = trust_level
        self.objective = objective

    def identity(self) -> Any:
        """The identity with the head's trust level."""
        return replace(super().identity(), trust_level=self.trust_level)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Nats per token of the head on noised latents."""
        tokens = tokens_of(batch)
        with torch.no_grad():
            latents = self.base.encoder().encode(tokens.ids, tokens.mask)
        head = CommitmentHead(self.head, trust_level=self.trust_level)
        return self.objective.forward(head, latents, tokens=tokens, generator=generator, regenerate=self.regenerate)

    @torch.no_grad()
    def regenerate(self, latents: Latents, generator: torch.Generator) -> Tensor:
        """Data latents, noised and denoised by the frozen flow, (B, K, D).

        Noised to a time t of the sampler's own grid, 0 < t < 1, one for the batch and each equally likely, and sampled
        from there to t = 1, deterministically if the model allows it (:func:`fewstep.samplers.default_sampling`). At
        small t little is left of the text that the head is trained to write.
        """
        flow, z, mask = self.base.flow(), latents.z.float(), latents.mask
        grid = self.base.identity.default_grid()
        step = 1 + int((self.generated_steps - 1) * rand((1,), torch.zeros(()), generator))
        t = z.new_full((len(z),), float(grid.times(self.generated_steps)[step]))
        x_t = flow.path.sample(z, randn(tuple(z.shape), z, generator), t)
        strength = default_sampling(self.base.identity, self.generated_steps).reinjection
        states = FlowSampler(flow.path, grid=grid, reinjection=strength).iterate(
            flow, x_t, num_steps=self.generated_steps, start_step=step, mask=mask, generator=generator
        )
        for state in states:
            last = state
        return last.x_t


def check_generation(identity: Identity, num_steps: int) -> None:
    """Raise ``UserError`` unless a flow of this ``identity`` can start within a trajectory of ``num_steps``."""
    if num_steps < 2:
        raise UserError(f"model.generated_steps is {num_steps}: expected at least 2, the first of which is skipped")
    check_sampler(identity, num_steps, default_sampling(identity, num_steps).reinjection)


class LanguageModelModule(TrainingModule):
    """Trains a causal transformer without latents by next-token cross-entropy. ``network`` is made from (V,)."""

    trained: ClassVar[tuple[str, ...]] = ("language_model",)
    stage_name: ClassVar[str] = "language_model"

    def __init__(
        self,
        data: TextDataModule,
        network: Callable[[int], CausalTransformer],
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, data.new_model())
        self.language_model = network(vocabulary_size(data.corpus.tokenizer))

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Nats per token."""
        per_example = LanguageModel(self.language_model).loss(batch["ids"], batch["mask"])
        return LossOutput(per_example.mean(), per_example.detach())
