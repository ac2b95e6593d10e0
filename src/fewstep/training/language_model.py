"""The baseline and scorer: a language model of the same text."""

from collections.abc import Callable
from typing import ClassVar

import torch

from fewstep.readouts import CausalTransformer, LanguageModel
from fewstep.training.data_module import TextDataModule
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.stage import Stage
from fewstep.types import LossOutput, TokenBatch


class LanguageModelModule(Stage):
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
        super().__init__(data, optimizer, seed)
        self.language_model = network(len(data.tokenizer))

    def compute_loss(self, tokens: TokenBatch, index: torch.Tensor | None, generator: torch.Generator) -> LossOutput:
        """Nats per token."""
        per_example = LanguageModel(self.language_model).loss(tokens.ids, tokens.mask)
        return LossOutput(per_example.mean(), per_example.detach())
