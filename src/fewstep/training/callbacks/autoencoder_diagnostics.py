"""How sharp the readout of an autoencoder is, and how much noise on its latents it bears, after every validation."""

from typing import ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from fewstep.diagnostics import NoiseRobustness, noise_robustness
from fewstep.errors import UserError
from fewstep.evaluation.measurements import (
    measure_boundary_distance,
    measure_dabi,
    measure_dabi_flip,
    measure_noise_robustness,
)
from fewstep.report import write_picture
from fewstep.training.autoencoder import AutoencoderModule
from fewstep.training.callbacks.diagnosed import Material, share
from fewstep.training.callbacks.diagnostics import DiagnosticsCallback, Results
from fewstep.training.callbacks.efforts import BRIEF
from fewstep.training.stage import Stage

NAME = "noise_robustness"
BATCH_SIZE = 32
"""Blocks that are read at once: more of them take longer each on a CPU, whose cache does not hold them."""


class AutoencoderDiagnostics(DiagnosticsCallback):
    """DABI, boundary distance and width, flips and accuracy under displacement, of held-out latents; see the base.

    DABI is that of the first position of each example, without segments and finite radii: those are dear, and
    ``fewstep diagnose`` has them. Flips and displacements look at half of the examples.

    Token accuracy under isotropic noise is measured once more on up to 256 blocks, padded ones too, and logged as
    ``val/token_accuracy_noise_LEVEL`` for the levels above zero. When training ends its table is printed, and
    ``noise_robustness.json`` and ``.png`` are written into ``folder``.
    """

    stage_class: ClassVar[type[Stage]] = AutoencoderModule
    _accuracy: NoiseRobustness | None = None

    def measure(self, found: Material) -> Results:
        """All of it, accuracy on many blocks first."""
        self._accuracy = accuracy_under_noise(found, torch.Generator().manual_seed(self.seed))
        subject = found.subject
        if subject is None:
            return ()
        half = share(subject, 2)
        return (
            *measure_dabi(subject.first(len(subject.z), 1), effort=BRIEF, segments=False),
            *measure_boundary_distance(subject),
            *measure_dabi_flip(half, num_isotropic=6),
            *measure_noise_robustness(half),
        )

    def values(self, results: Results) -> dict[str, float]:
        """The rows, and accuracy on many blocks under the names that it has had from the start."""
        found = super().values(results)
        if self._accuracy is not None:
            for level, accuracy in zip(self._accuracy.levels, self._accuracy.isotropic, strict=True):
                if level > 0 and accuracy.value is not None:
                    found[f"val/token_accuracy_noise_{level:g}"] = accuracy.value
        return found

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and write the table of accuracy too. Raises ``UserError`` where the folder cannot be written."""
        super().on_train_end(trainer, pl_module)
        if self._accuracy is None or not self._writes(trainer, pl_module):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{NAME}.json").write_text(self._accuracy.to_json(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write into {self.folder}: {error.strerror or error}") from None
        if (picture := self._accuracy.picture()) is not None:
            write_picture(picture, self.folder / f"{NAME}.png")
        trainer.print(accuracy_table(self._accuracy))


def accuracy_under_noise(found: Material, generator: torch.Generator) -> NoiseRobustness:
    """Token accuracy of the parallel readout under isotropic noise, over the real tokens of all blocks."""
    autoencoder, readout, tokens = found.bundle.autoencoder, found.bundle.reader(), found.tokens
    assert autoencoder is not None
    latents = autoencoder.encode(tokens.ids, tokens.mask)

    def decode(z: Tensor) -> Tensor:
        parts = zip(z.split(BATCH_SIZE), latents.mask.split(BATCH_SIZE), strict=True)
        return torch.cat([readout.logits(part, mask) for part, mask in parts])

    return noise_robustness(decode, latents.z, tokens.ids, tokens.mask, None, generator=generator)


def accuracy_table(result: NoiseRobustness) -> str:
    """A Markdown table, one column a level."""
    head = ["noise (rms)", *(f"{level:g}" for level in result.levels)]
    values = ["token accuracy (%)"]
    intervals = ["95 % interval"]
    for accuracy in result.isotropic:
        values.append("" if accuracy.value is None else f"{100 * accuracy.value:.2f}")
        interval = accuracy.interval
        intervals.append("" if interval is None else f"{100 * interval.low:.1f} - {100 * interval.high:.1f}")
    lines = [head, ["---"] * len(head), values, intervals]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
