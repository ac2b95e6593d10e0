"""How much a setting of the recipe study may compute: CPU time, or work counted beside a reference."""

import time
from collections.abc import Callable

import torch
from recipe_settings import Recipe
from torch import nn

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.objectives import Reconstruction
from fewstep.readouts import TransformerReadout
from fewstep.types import TokenBatch

REFERENCE_STEPS_A_MINUTE = 1645 / 2.5
"""Steps of the base's autoencoder in a minute of an idle thread of the machine on which the study began."""


class Budget:
    """CPU seconds of this process. ``used`` in [0, 1] and beyond; ``tick`` is called once a step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start = time.process_time()

    @property
    def used(self) -> float:
        """Share of the budget that is gone."""
        return (time.process_time() - self.start) / self.seconds

    def tick(self) -> None:
        """Nothing to do: the clock runs by itself."""


class ReferenceBudget(Budget):
    """The same, for a machine whose threads slow each other down: CPU time there does not measure work.

    Time is counted in training steps of the base's autoencoder, which are made beside the run every fifty steps, and
    ``seconds`` are seconds of :data:`REFERENCE_STEPS_A_MINUTE`.
    """

    every = 50

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.work = 0.0
        self.steps = 0
        self.last = time.process_time()
        self.reference = ReferenceStep()
        self.cost = self.reference.seconds()

    @property
    def used(self) -> float:
        """Share of the budget that is gone."""
        return self.work / (self.seconds / 60 * REFERENCE_STEPS_A_MINUTE)

    def tick(self) -> None:
        """Count the work since the last step, and see how fast the machine is now."""
        self.work += (time.process_time() - self.last) / self.cost
        self.steps += 1
        if self.steps % self.every == 0:
            self.cost = (self.cost + self.reference.seconds()) / 2
        self.last = time.process_time()


class ReferenceStep:
    """A training step of the base's autoencoder on random tokens, whose only purpose is its cost."""

    def __init__(self) -> None:
        recipe = Recipe()
        width, vocab_size = recipe.autoencoder_width, recipe.vocab_size
        with torch.random.fork_rng():
            autoencoder = TransformerAutoencoder(vocab_size, recipe.latent_dim, depth=2, width=width)
            readout = TransformerReadout(vocab_size, recipe.latent_dim, depth=2, width=width)
        ids = torch.randint(vocab_size, (32, recipe.block_size), generator=torch.Generator().manual_seed(0))
        self.parts = nn.ModuleList([autoencoder, readout])
        self.tokens = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
        self.objective = Reconstruction(noise_level_max=recipe.noise_level_max)
        self.optimizer = torch.optim.AdamW(self.parts.parameters(), lr=1e-4)

    def seconds(self, repeats: int = 3) -> float:
        """CPU seconds of a step, the mean of ``repeats``."""
        start = time.process_time()
        for seed in range(repeats):
            generator = torch.Generator().manual_seed(seed)
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.objective.forward(*self.parts, self.tokens, generator=generator).loss  # type: ignore[call-arg]
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
            self.optimizer.step()
        return (time.process_time() - start) / repeats


NewBudget = Callable[[float], Budget]
