"""Stage one: text to latents and back."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.data import vocabulary_size
from fewstep.errors import UserError
from fewstep.model import Identity
from fewstep.objectives import Reconstruction
from fewstep.readouts import token_accuracy
from fewstep.training.data_modules import Batch, TextDataModule
from fewstep.training.module import DEFAULT_OPTIMIZER, OptimizerSettings, TrainingModule, tokens_of
from fewstep.types import LatentEncoder, LossOutput, Readout


class AutoencoderModule(TrainingModule):
    """Trains an autoencoder and its parallel readout by noisy reconstruction.

    ``autoencoder`` is made from the vocabulary size V, ``readout`` from (V, D). They may be any modules that implement
    :class:`~fewstep.types.LatentEncoder` and :class:`~fewstep.types.Readout`. Logs token accuracy and bits per byte on
    clean held-out latents. An encoder that was trained elsewhere may have ``check_tokenizer``, which refuses any
    tokenizer but its own, and ``first_codes``, from which a readout with ``start_from`` starts. Raises ``UserError`` if
    they do not fit each other or the data.
    """

    trained: ClassVar[tuple[str, ...]] = ("autoencoder", "readout")
    stage_name: ClassVar[str] = "autoencoder"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: Callable[[int], nn.Module],
        readout: Callable[[int, int], nn.Module],
        objective: Reconstruction,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, data.new_model())
        vocab_size = vocabulary_size(data.corpus.tokenizer)
        # The parser builds subclasses of nn.Module; it cannot check protocols with attributes.
        self.autoencoder: Any = implements(autoencoder(vocab_size), LatentEncoder, "model.autoencoder")
        if hasattr(self.autoencoder, "check_tokenizer"):
            self.autoencoder.check_tokenizer(data.corpus.tokenizer)
        stride = data.block_size // self.autoencoder.num_latents(data.block_size)
        self.readout: Any = implements(readout(vocab_size, self.autoencoder.latent_dim), Readout, "model.readout")
        if self.readout.config.get("stride", stride) != stride:
            raise UserError(
                f"model.readout.stride is {self.readout.config['stride']}, model.autoencoder.stride {stride}: "
                "give both the same"
            )
        codes = self.autoencoder.first_codes() if hasattr(self.autoencoder, "first_codes") else None
        if codes is not None and hasattr(self.readout, "start_from"):
            self.readout.start_from(codes)
        self.objective = objective
        mask_embedding = getattr(self.autoencoder, "mask_embedding", None)
        if objective.token_masking > 0 and mask_embedding is None:
            raise UserError(
                f"model.objective.token_masking is {objective.token_masking}, but model.autoencoder has no "
                "mask_embedding: give 0"
            )
        if objective.kl_weight > 0 and not hasattr(self.autoencoder, "posterior"):
            raise UserError(
                f"model.objective.kl_weight is {objective.kl_weight}, but model.autoencoder has no posterior: give 0, "
                "or fewstep.autoencoders.VariationalAutoencoder"
            )
        if objective.token_masking == 0 and mask_embedding is not None:
            mask_embedding.requires_grad_(False)  # DDP waits for the gradient of every parameter

    def identity(self) -> Identity:
        """The identity with this stage's objective."""
        return replace(super().identity(), objective=type(self.objective).__name__)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Nats per token of the readout on corrupted latents."""
        return self.objective.forward(self.autoencoder, self.readout, tokens_of(batch), generator=generator)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Token accuracy on clean latents, and bits per byte if the tokenizer loses no text."""
        ids, mask = batch["ids"], batch["mask"]
        latents = self.autoencoder.encode(ids, mask)
        nats = self.readout.loss(latents.z, ids, mask) * mask.sum(-1)
        scores = {"token_accuracy": token_accuracy(self.readout, latents.z, ids, mask)}
        if self.data.corpus.report.is_lossless:
            scores["bits_per_byte"] = nats.sum() / math.log(2) / batch["num_bytes"].sum().clamp(min=1)
        return scores


def implements(module: nn.Module, protocol: Any, option: str) -> Any:
    """Return ``module``. Raises ``UserError`` if it lacks a member of ``protocol``."""
    if not isinstance(module, protocol):
        raise UserError(
            f"{option} is a {type(module).__name__}: expected what fewstep.types.{protocol.__name__} asks for"
        )
    return module
