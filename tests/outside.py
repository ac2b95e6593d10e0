"""What a user's own package may hold: an objective, with an estimate of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from fewstep.denoisers import EstimateKind, FlowModel
from fewstep.objectives import Batch, Objective, Regression, match_flow
from fewstep.shapes import randn


@dataclass(kw_only=True, eq=False)
class Noisy(Objective):
    """Flow matching on latents with a little noise; its estimate may be followed by Euler steps only."""

    estimate: ClassVar[EstimateKind] = EstimateKind("noisy", has_velocity=False)
    level: float = 0.1

    def regressions(self, model: FlowModel, batch: Batch, teacher: FlowModel | None) -> Iterator[Regression]:
        """Pairs of noise and noised data."""
        x_1 = batch.x_1 + self.level * randn(tuple(batch.x_1.shape), batch.x_1, batch.generator)
        t = self.time_sampler.sample(len(x_1), batch.generator, x_1.device)
        yield match_flow(model, x_1, batch.x_0, t, batch.mask)
