"""How much noise on the latents the parallel readout bears, after every validation."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from fewstep.errors import UserError
from fewstep.evaluation import NoiseRobustness, held_out_blocks, noise_robustness
from fewstep.report import write_robustness_figure
from fewstep.training.autoencoder import AutoencoderModule

NAME = "noise_robustness"


class RobustnessTable(Callback):
    """Token accuracy on noised latents of held-out text, by :func:`fewstep.evaluation.noise_robustness`.

    After every validation, and with the averaged weights, logs ``val/token_accuracy_noise_LEVEL`` for the levels above
    zero. When training ends it prints the table, writes ``noise_robustness.json`` and ``.png`` into ``folder``, and
    gives the picture to wandb. It acts when the validation epoch ends, so it is listed before weight averaging, which
    takes the averaged weights back then. ``num_blocks`` held-out blocks are read; ``seed`` fixes the noise, so that
    values differ by the weights alone.
    """

    def __init__(self, folder: str, num_blocks: int = 256, seed: int = 0) -> None:
        self.folder = Path(folder)
        self.num_blocks = num_blocks
        self.seed = seed
        self._latest: NoiseRobustness | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log; not in the sanity check before training.

        Every process does it, on the same blocks: the others would only wait for the first one.
        """
        if trainer.sanity_checking or not isinstance(pl_module, AutoencoderModule):
            return
        validation = pl_module.data.corpus.validation
        tokens, _ = held_out_blocks(validation, min(self.num_blocks, len(validation)))
        if len(tokens.ids) < 2:  # one block has no spread
            return
        generator = torch.Generator().manual_seed(self.seed)
        result = noise_robustness(pl_module.autoencoder, pl_module.readout, tokens, generator=generator)
        self._latest = result
        for level, accuracy in zip(result.levels, result.accuracies, strict=True):
            if level > 0:
                pl_module.log(f"val/token_accuracy_noise_{level:g}", accuracy, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write the latest table. Raises ``UserError`` where the folder cannot be written."""
        fast = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if self._latest is None or fast or not trainer.is_global_zero:
            return
        picture = self.folder / f"{NAME}.png"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{NAME}.json").write_text(self._latest.to_json(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write into {self.folder}: {error.strerror or error}") from None
        write_robustness_figure(self._latest, picture)
        trainer.print(self._latest.to_markdown().rstrip())
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(NAME, [str(picture)])
