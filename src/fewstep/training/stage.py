"""What all training stages share: exact randomness, optimizer, logging, self-contained checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

from fewstep.bundle import COMPONENTS, Identity, ModelBundle, versions
from fewstep.data import tokenizer_fingerprint
from fewstep.errors import UserError
from fewstep.shapes import example_generators
from fewstep.storage import CHECKPOINT_KEY, checkpoint_entry
from fewstep.training.data_module import TextDataModule
from fewstep.training.optimizer import OptimizerSettings
from fewstep.training.shared import Shared
from fewstep.types import LossOutput, TokenBatch

MAX_PROCESSES = 2**20
"""Streams of random numbers that a seed has, so that neighbouring seeds share none."""


class Stage(LightningModule):
    """Base of the stages. A subclass names what it trains (``trained``) as attributes of the same names as the parts
    of a :class:`~fewstep.bundle.ModelBundle`, and gives ``compute_loss``.

    All randomness of a step comes from a generator that is a pure function of (seed, rank, step), so a resumed run
    repeats an uninterrupted one. Checkpoints carry the frozen parts and the tokenizer: they need no other file.
    """

    trained: ClassVar[tuple[str, ...]] = ()
    stage_name: ClassVar[str] = ""

    def __init__(
        self, data: TextDataModule, optimizer: OptimizerSettings, seed: int, base: ModelBundle | None = None
    ) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.seed = seed
        self._data = Shared(data)
        self._base = Shared(base or ModelBundle(data.tokenizer, self._new_identity(data)))

    @staticmethod
    def _new_identity(data: TextDataModule) -> Identity:
        return Identity(
            block_size=data.block_size,
            tokenizer_fingerprint=tokenizer_fingerprint(data.tokenizer),
            source=data.source_name,
            versions=versions(),
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
        return replace(self.base.identity, versions=versions())

    def bundle(self) -> ModelBundle:
        """The frozen parts and the trained ones, as they are now."""
        parts = {name: getattr(self.base, name) for name in COMPONENTS}
        parts.update({name: getattr(self, name) for name in self.trained})
        return ModelBundle(self.base.tokenizer, self.identity(), **parts)

    def compute_loss(self, tokens: TokenBatch, index: torch.Tensor, generator: torch.Generator) -> LossOutput:
        """Loss of one batch; ``index`` (B,) are the rows of the train split, -1 outside it."""
        raise UserError(f"{type(self).__name__} defines no compute_loss: derive it from a stage that does")

    def step_generator(self, step: int) -> torch.Generator:
        """CPU generator of (seed, rank, step): no two steps of a run share one. Validation uses negative steps."""
        stream = 2 * (self.seed * MAX_PROCESSES + self.global_rank) + (step < 0)
        (generator,) = example_generators(stream, step if step >= 0 else -1 - step, 1)
        return generator

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """One optimisation step; logs ``train/loss`` and the objective's terms."""
        step = self.global_step * self.trainer.accumulate_grad_batches
        step += batch_idx % self.trainer.accumulate_grad_batches
        output = self.compute_loss(tokens_of(batch), batch["index"], self.step_generator(step))
        # Looking at the loss makes the processor wait for an accelerator: there it is done at logged steps only. A loss
        # that is not finite stays so, and is found then.
        if (self.device.type == "cpu" or self._is_logged()) and not torch.isfinite(output.loss):
            raise UserError(
                f"the loss is {output.loss.item()} at step {self.global_step}: lower the learning rate, "
                "or use bf16 or float32 in place of fp16"
            )
        if self._is_logged():
            self.log("train/loss", output.loss, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in output.terms.items()})
        return output.loss

    def _is_logged(self) -> bool:
        """Whether the optimizer step that is under way is one that the trainer writes to its loggers."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Loss on held-out text with the same noise at every validation; logs ``val/loss``."""
        outside = torch.full_like(batch["index"], -1)
        output = self.compute_loss(tokens_of(batch), outside, self.step_generator(-1 - batch_idx))
        size = len(batch["ids"])
        self.log("val/loss", output.loss, prog_bar=True, batch_size=size, sync_dist=True)
        terms = {f"val/{name}": value for name, value in output.terms.items()}
        self.log_dict(terms, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with its schedule over the whole run. Raises ``UserError`` where the trainer has no ``max_steps``."""
        if self.trainer.max_steps < 1:
            raise UserError(
                f"trainer.max_steps is {self.trainer.max_steps}: training is counted in steps, not epochs; give a "
                "number of at least 1"
            )
        optimizer, schedule = self.optimizer_settings.build(self.parameters(), self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm before clipping, and the learning rate of this step."""
        if self._is_logged():
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients))
            self.log("train/learning_rate", float(optimizer.param_groups[0]["lr"]))

    def on_fit_start(self) -> None:
        """Move the frozen parts to where the trained ones are."""
        self.base.to(self.device)

    on_validation_start = on_test_start = on_fit_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add manifest, frozen parts and tokenizer, so that the checkpoint is a whole model."""
        frozen = {name: part.state_dict() for name, part in self.base.parts().items() if name not in self.trained}
        checkpoint[CHECKPOINT_KEY] = checkpoint_entry(self.bundle().manifest(), frozen, self.base.tokenizer)
        checkpoint[CHECKPOINT_KEY]["stage"] = self.stage_name

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another stage before its tensors are compared."""
        stage = checkpoint.get(CHECKPOINT_KEY, {}).get("stage")
        if stage != self.stage_name:
            raise UserError(f"the checkpoint is of stage {stage!r}, but this run trains {self.stage_name!r}")


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
