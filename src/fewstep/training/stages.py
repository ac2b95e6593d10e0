"""The stages of text beside the flow: autoencoder with readout, head over the latents, language model."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.data.tokenizer import vocabulary_size
from fewstep.errors import UserError
from fewstep.model import Identity
from fewstep.objectives import HeadTraining, Reconstruction
from fewstep.readouts import CausalTransformer, CommitmentHead, LanguageModel, token_accuracy
from fewstep.training.data_modules import Batch, TextDataModule
from fewstep.training.module import DEFAULT_OPTIMIZER, OptimizerSettings, TrainingModule, tokens_of
from fewstep.training.run_folder import weights_digest
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
        if (own := self.readout.config.get("stride", stride)) != stride:
            raise UserError(f"model.readout.stride is {own}, model.autoencoder.stride {stride}: give both the same")
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
        """With this stage's objective."""
        return replace(super().identity(), objective=type(self.objective).__name__)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Nats per token of the readout on corrupted latents."""
        return self.objective.forward(self.autoencoder, self.readout, tokens_of(batch), generator=generator)

    def scores(self, batch: Batch) -> dict[str, Tensor]:
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


class HeadModule(TrainingModule):
    """Trains a causal transformer to read latents out token by token.

    ``autoencoder`` is a model folder or checkpoint with one, and usually with a denoiser. ``network`` is made from (V,)
    with ``latent_dim`` and ``stride`` filled in. ``trust_level`` (rms) is the noise level at which generation reads
    latents by default. ``language_model`` is a model whose language model, of the same tokenizer, width and depth, the
    head starts from; None: from scratch. ``allow`` names packages beside fewstep whose classes these models may have.
    Raises ``UserError`` if parts and data do not fit.
    """

    trained: ClassVar[tuple[str, ...]] = ("head",)
    stage_name: ClassVar[str] = "head"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: str,
        network: Callable[[int], CausalTransformer],
        objective: HeadTraining,
        language_model: str | None = None,
        trust_level: float = 0.5,
        allow: list[str] | None = None,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, data.load_model(autoencoder, "autoencoder", allow=allow or ()))
        self.objective, self.trust_level = objective, trust_level
        positions, latent_dim = self.base.latent_shape()
        make: Callable[..., CausalTransformer] = network  # the parser must know the number of positional arguments
        vocab_size, stride = vocabulary_size(data.corpus.tokenizer), data.block_size // positions
        self.head = make(vocab_size, latent_dim=latent_dim, stride=stride)
        if language_model is not None:
            scorer: Any = data.load_model(language_model, "language_model", allow=allow or ()).language_model
            self.head.start_from(scorer)
            self.fingerprints["model.language_model"] = weights_digest({"language_model": scorer})

    def identity(self) -> Identity:
        """With the head's trust level."""
        return replace(super().identity(), trust_level=self.trust_level)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Nats per token of the head on noised latents."""
        tokens = tokens_of(batch)
        with torch.no_grad():
            latents = self.base.encoder().encode(tokens.ids, tokens.mask)
        head = CommitmentHead(self.head, trust_level=self.trust_level)
        return self.objective.forward(head, latents, tokens=tokens, generator=generator)


class LanguageModelModule(TrainingModule):
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
        super().__init__(data, optimizer, seed, data.new_model())
        self.language_model = network(vocabulary_size(data.corpus.tokenizer))

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Nats per token."""
        per_example = LanguageModel(self.language_model).loss(batch["ids"], batch["mask"])
        return LossOutput(per_example.mean(), per_example.detach())
