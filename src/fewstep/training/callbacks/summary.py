"""What a stage is about to do, in plain lines."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from fewstep.training.module import TrainingModule


class StageSummary(Callback):
    """Says at the start what is trained on which data and where it is written."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print from the first process."""
        if not isinstance(pl_module, TrainingModule):
            return
        count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        steps, start = f"{trainer.max_steps:,} steps", trainer.global_step
        size = pl_module.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        examples = f"{size:,} {pl_module.data.example_name}"
        going_on = f", going on from step {start:,}" if start else ""
        trainer.print(f"==> {pl_module.stage_name}: {count:,} parameters, {steps} of {examples}{going_on}")
        for line in pl_module.data.report().splitlines():
            trainer.print(f"    {line}")
        for line in pl_module.report().splitlines() if start == 0 else ():
            trainer.print(f"    {line}")
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.print(f"    writes {self.run_dir}")
