"""What the stages of a text model share: frozen parts of earlier stages, self-contained checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from fewstep.bundle import COMPONENTS, Identity, ModelBundle
from fewstep.data import tokenizer_fingerprint
from fewstep.errors import UserError
from fewstep.storage import checkpoint_entry, versions
from fewstep.training.data_module import TextDataModule
from fewstep.training.module import Batch, TrainingModule
from fewstep.training.optimizer import OptimizerSettings
from fewstep.training.shared import Shared
from fewstep.training.step_data import StepDataModule
from fewstep.types import LossOutput, TokenBatch


class Stage(TrainingModule):
    """Base of the stages of a text model. A subclass names what it trains (``trained``) as attributes of the same
    names as the parts of a :class:`~fewstep.bundle.ModelBundle`, and gives ``compute_loss``.

    Checkpoints carry the frozen parts and the tokenizer: they need no other file.
    """

    trained: ClassVar[tuple[str, ...]] = ()
    data_class: ClassVar[type[StepDataModule]] = TextDataModule
    unit: ClassVar[str] = "tokens"

    def __init__(
        self, data: TextDataModule, optimizer: OptimizerSettings, seed: int, base: ModelBundle | None = None
    ) -> None:
        super().__init__(optimizer, seed)
        self._data = Shared(data)
        self._base = Shared(base or ModelBundle(data.tokenizer, self._new_identity(data)))

    @staticmethod
    def _new_identity(data: TextDataModule) -> Identity:
        return Identity(
            block_size=data.block_size,
            tokenizer_fingerprint=tokenizer_fingerprint(data.tokenizer),
            source=data.source_name,
            versions=versions("transformers"),
        )

    @property
    def data(self) -> TextDataModule:
        """The data module that the stage was built for."""
        return self._data.value

    @property
    def base(self) -> ModelBundle:
        """The frozen parts of earlier stages."""
        return self._base.value

    def identity(self) -> Identity:
        """What the model is after this stage; subclasses add what they decide."""
        return replace(self.base.identity, versions=versions("transformers"))

    def bundle(self) -> ModelBundle:
        """The frozen parts and the trained ones, as they are now."""
        trained = {name: getattr(self, name) for name in self.trained}
        parts: dict[str, Any] = {name: getattr(self.base, name) for name in COMPONENTS} | trained
        return ModelBundle(self.base.tokenizer, self.identity(), **parts)

    def saved_model(self) -> ModelBundle:
        """The same as :meth:`bundle`."""
        return self.bundle()

    def compute_loss(self, tokens: TokenBatch, index: torch.Tensor | None, generator: torch.Generator) -> LossOutput:
        """Loss of one batch; ``index`` (B,) are its rows of the train split, None outside of it."""
        raise self._undefined("compute_loss")

    def batch_loss(self, batch: Batch, generator: torch.Generator, *, held_out: bool) -> LossOutput:
        """``compute_loss`` of a collated batch."""
        return self.compute_loss(tokens_of(batch), None if held_out else batch["index"], generator)

    def units_in(self, batch: Batch) -> torch.Tensor | int:
        """Real tokens of a batch."""
        return batch["mask"].sum()

    def on_fit_start(self) -> None:
        """Move the frozen parts to where the trained ones are."""
        self.base.to(self.device)

    on_validation_start = on_test_start = on_fit_start

    def checkpoint_entry(self) -> dict[str, Any]:
        """Manifest, frozen parts and tokenizer."""
        frozen = {name: part.state_dict() for name, part in self.base.parts().items() if name not in self.trained}
        return checkpoint_entry(self.bundle().manifest(), frozen, self.base.tokenizer)


def tokens_of(batch: dict[str, torch.Tensor]) -> TokenBatch:
    """Ids and mask of a collated batch."""
    return TokenBatch(batch["ids"], batch["mask"])


def load_base(path: str | Path, data: TextDataModule, *needed: str) -> ModelBundle:
    """Load the model that a stage builds on, and check that it fits the data.

    Raises ``UserError`` where a needed part is missing, or where tokenizer or block size differ from the data's.
    """
    bundle = ModelBundle.from_pretrained(path)
    bundle.require(*needed, source=str(path))
    identity = bundle.identity
    if identity.block_size != data.block_size:
        raise UserError(
            f"{path} was trained on blocks of {identity.block_size} tokens, the data has {data.block_size}: "
            f"pass --data.block_size={identity.block_size}"
        )
    if identity.tokenizer_fingerprint != tokenizer_fingerprint(data.tokenizer):
        raise UserError(f"the data's tokenizer is not the one of {path}: leave --data.tokenizer out, or point it there")
    for part in bundle.parts().values():
        part.requires_grad_(False)
    return bundle
