"""What all stages share: exact randomness, AdamW, logging, and whole models in checkpoints."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from fewstep.errors import UserError
from fewstep.model import Identity, SavedModel
from fewstep.nn import transformer_blocks
from fewstep.provenance import versions
from fewstep.shapes import example_generators
from fewstep.storage import CHECKPOINT_KEY, checkpoint_entry, state_dict_mismatch
from fewstep.training.data_modules import Batch, StepDataModule, TextDataModule
from fewstep.training.run_folder import BASE, BATCHES, RunRecord, weights_digest
from fewstep.types import LossOutput, TokenBatch

MAX_PROCESSES = 2**20
"""Random streams of a seed: neighbouring seeds share none."""
FUSED_DEVICES = ("cpu", "cuda")
"""Devices with torch's fused AdamW, which takes a third of the time and agrees within float error."""


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (arXiv:1711.05101) with linear warm-up, then a cosine to ``final_fraction`` of the peak rate.

    Decay spares biases, norms and embeddings of positions (tensors with fewer than two axes). Raises ``UserError`` for
    values out of range.
    """

    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    beta_2: float = 0.99
    final_fraction: float = 0.05

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup_steps < 0 or not 0 <= self.final_fraction <= 1:
            raise UserError(
                f"learning_rate {self.learning_rate}, warmup_steps {self.warmup_steps}, final_fraction "
                f"{self.final_fraction}: expected a rate > 0, steps >= 0 and a fraction in [0, 1]"
            )

    def build(self, parameters: Iterable[nn.Parameter], num_steps: int) -> tuple[torch.optim.AdamW, LRScheduler]:
        """The optimizer over ``parameters`` and its schedule over ``num_steps`` optimizer steps."""
        from transformers import get_cosine_with_min_lr_schedule_with_warmup

        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in trainable)
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, self.beta_2), fused=fused)
        # Lightning refuses to clip for an optimizer with this mark, which says that it unscales fp16 gradients itself.
        optimizer._step_supports_amp_scaling = False
        schedule = get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, self.warmup_steps, max(num_steps, self.warmup_steps + 1), min_lr_rate=self.final_fraction
        )
        return optimizer, schedule

    def replace_restored(self, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        """Put these settings in place of those that a checkpoint restored, from the next step on."""
        schedule.base_lrs = [self.learning_rate] * len(optimizer.param_groups)
        for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
            decays = any(parameter.ndim >= 2 for parameter in group["params"])
            group |= {"initial_lr": self.learning_rate, "lr": self.learning_rate * factor(schedule.last_epoch)}
            group |= {"betas": (0.9, self.beta_2), "weight_decay": self.weight_decay if decays else 0.0}


DEFAULT_OPTIMIZER = OptimizerSettings()
"""Frozen, so all stages can share it."""


class Shared:
    """Holds frozen modules and data, so that they are not registered, copied by the weight average or saved."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return self


class TrainingModule(LightningModule):
    """Base of all stages.

    A subclass sets ``stage_name``, the parts of a model that it trains (``trained``) and the class of its data, and
    defines :meth:`batch_loss`. ``base`` is the frozen model of earlier stages; checkpoints carry its parts.

    All randomness of a batch comes from a generator seeded by (seed, number of the batch in the run): a resumed run
    repeats an uninterrupted one, and W processes draw what one process draws that accumulates W batches.
    """

    stage_name: ClassVar[str] = ""
    trained: ClassVar[tuple[str, ...]] = ()
    data_class: ClassVar[type[StepDataModule]] = TextDataModule

    def __init__(self, data: Any, optimizer: OptimizerSettings, seed: int, base: SavedModel) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.seed = seed
        self.step_was_skipped = False  # by the callback SkipNonFinite
        self.settings: dict[str, Any] = {}
        """All settings of the run by option, set by the command; a checkpoint records them."""
        self._data = Shared(data)
        self._base = Shared(base)
        frozen = self.frozen_parts()
        self.fingerprints: dict[str, str] = data.fingerprints() | ({BASE: weights_digest(frozen)} if frozen else {})
        """Digests of the text and the models that options name, by option."""

    @property
    def data(self) -> Any:
        """The data module, of class ``data_class``."""
        return self._data.value

    @property
    def base(self) -> SavedModel:
        """The frozen parts of earlier stages."""
        return self._base.value

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """The loss of one batch; held-out batches come in evaluation mode."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks that take part in a training step, for compiling and recomputing them."""
        return transformer_blocks(self)

    def identity(self) -> Identity:
        """What the model is after this stage."""
        depends_on = "transformers" if self.base.identity.kind == "text" else "scikit-learn"
        return replace(self.base.identity, versions=versions(depends_on))

    def saved_model(self) -> SavedModel:
        """The frozen parts and the trained ones as they are now."""
        parts = self.base.parts() | {name: getattr(self, name) for name in self.trained}
        return SavedModel(self.base.tokenizer, self.identity(), **parts)

    def step_generator(self, step: int) -> torch.Generator:
        """CPU generator of this process's batch ``step``; validation uses negative numbers.

        Batch i on rank r of W has the generator of batch i W + r in a single process.
        """
        stream = 2 * self.seed * MAX_PROCESSES + (step < 0)
        rank, world_size = self.data.ranks()
        (generator,) = example_generators(stream, (step if step >= 0 else -1 - step) * world_size + rank, 1)
        return generator

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """One batch; logs ``train/loss`` and the objective's terms."""
        accumulated = self.trainer.accumulate_grad_batches
        output = self.batch_loss(batch, self.step_generator(self.global_step * accumulated + batch_idx % accumulated))
        if self._is_logged():
            self.log("train/loss", output.loss, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in output.terms.items()})
        return spread_nonfinite(output.loss)

    def _is_logged(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss on held-out data, with the same noise at every validation; logs ``val/loss`` and :meth:`scores`."""
        output = self.batch_loss(batch, self.step_generator(-1 - batch_idx))
        size = self.data.held_out_weight(batch_idx, len(batch["index"]))
        values = {"loss": output.loss, **output.terms, **self.scores(batch)}
        values = {f"val/{name}": value for name, value in values.items()}
        self.log_dict(values, prog_bar=True, batch_size=size, sync_dist=True)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Further measures of a held-out batch, by name."""
        return {}

    def run_record(self, trainer: Trainer) -> RunRecord:
        """What decides this run, as its checkpoints record it."""
        batches = trainer.accumulate_grad_batches * trainer.world_size
        return RunRecord(self.settings | {BATCHES: batches}, self.fingerprints)

    def check_trainer(self, trainer: Trainer) -> None:
        """Raise ``UserError`` for a trainer that this stage cannot be trained by."""

    def frozen_parts(self) -> dict[str, nn.Module]:
        """Those of the base model that are not trained again, by name."""
        return {name: part for name, part in self.base.parts().items() if name not in self.trained}

    def on_fit_start(self) -> None:
        """Move the frozen parts to the device of the trained ones."""
        self.base.to(self.device)

    def on_train_start(self) -> None:
        """A resumed run keeps its own settings of the optimizer."""
        if self.global_step:
            (schedule,) = self.trainer.lr_scheduler_configs
            self.optimizer_settings.replace_restored(self.trainer.optimizers[0], schedule.scheduler)

    def on_validation_start(self) -> None:
        """The same."""
        self.on_fit_start()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with its schedule over ``max_steps``."""
        optimizer, schedule = self.optimizer_settings.build(self.parameters(), self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm before clipping, and the learning rate of this step."""
        if self._is_logged():
            self.log("train/grad_norm", gradient_norm(self))
            self.log("train/learning_rate", float(optimizer.param_groups[0]["lr"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint a whole model, and the name of the stage."""
        model = self.saved_model()
        frozen = {name: part.state_dict() for name, part in self.frozen_parts().items()}
        entry = checkpoint_entry(model.manifest(), frozen, model.tokenizer)
        run = asdict(self.run_record(self.trainer))
        checkpoint[CHECKPOINT_KEY] = {**entry, "stage": self.stage_name, "run": run}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network before its tensors are copied; some callbacks keep their settings."""
        states = checkpoint["callbacks"]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer):  # `max_time` counts from each start
                states.pop(callback.state_key, None)
            elif isinstance(callback, EarlyStopping) and callback.state_key in states:
                states[callback.state_key]["patience"] = callback.patience
        if problems := state_dict_mismatch(self.state_dict(), checkpoint["state_dict"]):
            raise UserError(
                f"the checkpoint does not fit the model of this run: {problems}; give the settings it was trained with"
            )


def spread_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """``loss`` if it is finite, else NaN with a NaN gradient, which the all-reduce carries to every rank."""
    return loss * torch.where(torch.isfinite(loss), torch.ones_like(loss), torch.full_like(loss, torch.nan))


def gradient_norm(module: nn.Module) -> torch.Tensor:
    """The norm of all gradients, a scalar on their device; NaN if no parameter has one, as in a skipped step."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients) if gradients else torch.tensor(torch.nan)


def ends_logged_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the batch that ends here is the last of a step that is logged; ``batch_idx`` counts in a pass."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    is_last = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return every > 0 and is_last and trainer.global_step % every == 0


def announce(trainer: Trainer, text: str) -> None:
    """Print on rank 0, above a progress bar."""
    if trainer.is_global_zero:
        tqdm.write(text)


def tokens_of(batch: Batch) -> TokenBatch:
    """Ids and mask of a batch of text."""
    return TokenBatch(batch["ids"], batch["mask"])
