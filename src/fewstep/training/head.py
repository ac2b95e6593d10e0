"""Stage three: the commitment head over the latents."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.bundle import Identity
from fewstep.errors import UserError
from fewstep.objectives import HeadTraining
from fewstep.pipeline import TextGenerator, check_sampler
from fewstep.readouts import CausalTransformer, CommitmentHead
from fewstep.samplers import FlowSampler, default_sampling
from fewstep.shapes import rand, randn
from fewstep.training.data_module import TextDataModule
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.stage import Stage, load_base
from fewstep.types import Latents, LossOutput, TokenBatch


class HeadModule(Stage):
    """Trains a causal transformer to read latents out token by token.

    ``autoencoder`` is a folder or checkpoint with one (and usually a denoiser, which is carried along).
    ``network`` is made from (V,) with ``latent_dim`` and ``stride`` filled in. ``trust_level`` (rms) is the noise
    level at which generation reads latents by default. ``language_model`` is a folder or checkpoint whose language
    model, of the same tokenizer, width and depth, the head starts from; None starts anew. Where the objective has a
    ``generated_share``, the frozen denoiser of ``autoencoder`` samples in ``generated_steps`` steps. Raises
    ``UserError`` where parts and data do not fit.
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
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        generates = objective.generated_share > 0
        needed = ("autoencoder", "denoiser") if generates else ("autoencoder",)
        super().__init__(data, optimizer, seed, load_base(autoencoder, data, *needed))
        if generates:
            check_generation(self.base.identity, generated_steps)
        self.generated_steps = generated_steps
        encoder = self.base.autoencoder
        assert encoder is not None
        make: Callable[..., CausalTransformer] = network  # the parser wants to know how many values it will be given
        self.head = make(len(data.tokenizer), latent_dim=encoder.latent_dim, stride=encoder.stride)
        if language_model is not None:
            scorer = load_base(language_model, data, "language_model").language_model
            assert scorer is not None
            self.head.start_from(scorer)
        self.trust_level = trust_level
        self.objective = objective

    def identity(self) -> Identity:
        """The identity with the head's trust level."""
        return replace(super().identity(), trust_level=self.trust_level)

    def compute_loss(self, tokens: TokenBatch, index: torch.Tensor | None, generator: torch.Generator) -> LossOutput:
        """Nats per token of the head on noised latents."""
        assert self.base.autoencoder is not None
        with torch.no_grad():
            latents = self.base.autoencoder.encode(tokens.ids, tokens.mask)
        head = CommitmentHead(self.head, trust_level=self.trust_level)
        return self.objective.forward(head, latents, tokens=tokens, generator=generator, regenerate=self.regenerate)

    @torch.no_grad()
    def regenerate(self, latents: Latents, generator: torch.Generator) -> Tensor:
        """What the frozen flow makes of data latents, (B, K, D).

        The latents are noised to a time t of the sampler's own grid, 0 < t < 1, one for the batch and each equally
        likely, and sampled from there to t = 1, deterministically where the model allows it
        (:func:`fewstep.samplers.default_sampling`). At small t little is left of the text that the
        latents came from, though the head is still asked for it (this project's definition).
        """
        flow, z, mask = self.base.flow(), latents.z.float(), latents.mask
        grid = TextGenerator(self.base).default_grid()
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
    """Raise ``UserError`` unless a flow of this ``identity`` can go on from within a trajectory of ``num_steps``."""
    if num_steps < 2:
        raise UserError(f"model.generated_steps is {num_steps}: expected at least 2, the first of which is left out")
    check_sampler(identity, num_steps, default_sampling(identity, num_steps).reinjection)
