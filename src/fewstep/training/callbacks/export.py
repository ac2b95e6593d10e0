"""The model folder at the end of a run."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from fewstep.training.module import TrainingModule


class ExportModel(Callback):
    """Writes ``folder`` when training ends, with the averaged weights where weights are averaged.

    It replaces an older export of the same run, and runs after weight averaging has copied its weights: Lightning
    calls callbacks in their order, so this one is listed after it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.wrote = False
        """Whether training ended here: it does not where nothing was left to train."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save from the first process, and say where."""
        if not isinstance(pl_module, TrainingModule) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        model = pl_module.saved_model()  # every process: where weights lie in parts, all give theirs
        if trainer.is_global_zero:
            model.save_pretrained(self.folder, overwrite=True)
            self.wrote = True
            trainer.print(
                f"==> {pl_module.stage_name}: done after {trainer.global_step:,} steps; model in {self.folder}"
            )
