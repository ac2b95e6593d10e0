"""Stage one: text to latents and back."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.bundle import Identity
from fewstep.errors import UserError
from fewstep.objectives import Reconstruction
from fewstep.readouts import LinearReadout, TransformerReadout, token_accuracy
from fewstep.training.data_module import TextDataModule
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.stage import Stage, tokens_of
from fewstep.types import LossOutput, TokenBatch


class AutoencoderModule(Stage):
    """Trains an autoencoder and its parallel readout by noisy reconstruction.

    ``autoencoder`` and ``readout`` are made from the vocabulary size (V) and, for the readout, from (V, D): sizes
    belong to the data and to the autoencoder, everything else to the configuration. Logs token accuracy and bits per
    byte on clean held-out latents.
    """

    trained: ClassVar[tuple[str, ...]] = ("autoencoder", "readout")
    stage_name: ClassVar[str] = "autoencoder"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: Callable[[int], TransformerAutoencoder],
        readout: Callable[[int, int], LinearReadout | TransformerReadout],
        objective: Reconstruction,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed)
        vocab_size = len(data.tokenizer)
        self.autoencoder = autoencoder(vocab_size)
        self.autoencoder.num_latents(data.block_size)
        self.readout = readout(vocab_size, self.autoencoder.latent_dim)
        if self.readout.config["stride"] != self.autoencoder.stride:
            raise UserError(
                f"model.readout.stride is {self.readout.config['stride']}, model.autoencoder.stride "
                f"{self.autoencoder.stride}: give both the same"
            )
        self.objective = objective
        if objective.token_masking == 0:  # a parameter without a gradient would make several processes wait forever
            self.autoencoder.mask_embedding.requires_grad_(False)

    def identity(self) -> Identity:
        """The identity with this stage's objective."""
        return replace(super().identity(), objective=type(self.objective).__name__)

    def compute_loss(self, tokens: TokenBatch, index: torch.Tensor | None, generator: torch.Generator) -> LossOutput:
        """Nats per token of the readout on corrupted latents."""
        return self.objective.forward(self.autoencoder, self.readout, tokens, generator=generator)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """The training loss, and accuracy and bits per byte on clean latents."""
        super().validation_step(batch, batch_idx)
        tokens = tokens_of(batch)
        latents = self.autoencoder.encode(tokens.ids, tokens.mask)
        nats = self.readout.loss(latents.z, tokens.ids, tokens.mask) * tokens.mask.sum(-1)
        bits_per_byte = nats.sum() / torch.log(torch.tensor(2.0)) / batch["num_bytes"].sum().clamp(min=1)
        accuracy = token_accuracy(self.readout, latents.z, tokens.ids, tokens.mask)
        values = {"val/token_accuracy": accuracy, "val/bits_per_byte": bits_per_byte}
        size = self.data.held_out_weight(batch_idx, len(batch["ids"]))
        self.log_dict(values, prog_bar=True, batch_size=size, sync_dist=True)
