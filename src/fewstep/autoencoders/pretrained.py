"""States of a frozen text encoder as latents. B batch, L tokens, W width of the states, D latent dimension."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.autoencoders.transformer import Whitening
from fewstep.errors import UserError, first_line
from fewstep.shapes import check_sizes
from fewstep.types import Latents

ENCODERS = "give a text encoder of transformers (BERT, MiniLM, RoBERTa, T5)"
NOT_SAVED = ("_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "transformers_version")
"""Entries of a configuration that do not change the states."""
NOT_NEEDED = "pooler"
"""Weights of this name may be missing: a token's state does not come from them."""


class FrozenWhitening(Whitening):
    """Whitening of states that training does not change, by the mean over all batches, which forgets its start."""

    num_batches: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches += 1
        for stored, new in ((self.mean, mean), (self.variance, variance)):
            stored += torch.where(torch.isfinite(new), new - stored, 0.0) / self.num_batches


class PretrainedEncoder(nn.Module):
    """States of a frozen encoder of transformers, whitened: a :class:`~fewstep.types.LatentEncoder`.

    ``model`` is a folder written by ``save_pretrained`` or a hub name; of an encoder-decoder the encoder is taken. Its
    weights become part of ours, and a saved model has its configuration here instead of the name. ``layer`` counts
    as ``hidden_states`` does: 0 the embeddings, -1 the last layer. The layers behind it are left out. With
    ``latent_dim`` a linear map, trained with the readout, takes the W states to D dimensions; None: D = W.

    The tokens have to be those of the encoder's own tokenizer (:meth:`check_tokenizer`). ``prefix`` are ids that go
    before every block, and None those that this tokenizer writes there: BERT takes whatever comes first for its
    ``[CLS]``, and its state says little about the token. Raises ``UserError`` for a model that cannot be loaded, and
    for a layer or a vocabulary that it does not have.
    """

    prefix: Tensor

    def __init__(
        self,
        vocab_size: int,
        model: str | dict[str, Any],
        layer: int = -1,
        latent_dim: int | None = None,
        prefix: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_sizes("PretrainedEncoder", {"vocab_size": vocab_size, "latent_dim": latent_dim})
        self.source = model if isinstance(model, str) else None
        config = _read_config(model)
        self.layer, config.num_hidden_layers = _kept_layers(layer, config.num_hidden_layers)
        self.network = _build(config, self.source).requires_grad_(False)
        rows, width = self.network.get_input_embeddings().num_embeddings, config.hidden_size
        if vocab_size > rows:
            raise UserError(
                f"the data's tokenizer has {vocab_size:,} tokens, {self.source or 'the encoder'} embeds {rows:,}: give "
                "the encoder's own, as data.tokenizer"
            )
        if prefix is None:
            prefix = [] if self.source is None else _written_before(_own_tokenizer(self.source))
        self.register_buffer("prefix", torch.tensor(prefix, dtype=torch.int64), persistent=False)
        settings = json.loads(self.network.config.to_json_string(use_diff=False))
        settings = {name: value for name, value in settings.items() if name not in NOT_SAVED}
        self.config = {"vocab_size": vocab_size, "model": settings, "layer": self.layer, "latent_dim": latent_dim}
        self.config["prefix"] = prefix
        self.max_tokens = getattr(config, "max_position_embeddings", None)
        self.latent_dim = width if latent_dim is None else latent_dim
        self.whitening = FrozenWhitening(width)
        self.bottleneck: nn.Linear | None = None
        if latent_dim is not None:
            self.bottleneck = nn.Linear(width, latent_dim, bias=False)
            nn.init.normal_(self.bottleneck.weight, std=width**-0.5)
            self.bottleneck_whitening = Whitening(latent_dim)

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Training mode for the whitening; the frozen network has no dropout in either mode."""
        super().train(mode)
        self.network.eval()
        return self

    def num_latents(self, num_tokens: int) -> int:
        """K = L: a latent per token. ``UserError`` for more tokens than the encoder has positions for."""
        if self.max_tokens is not None and num_tokens + len(self.prefix) > self.max_tokens:
            raise UserError(
                f"a block of {num_tokens} tokens, and the encoder has positions for "
                f"{self.max_tokens - len(self.prefix)}: give a smaller block_size"
            )
        return num_tokens

    def encode(self, ids: Tensor, mask: Tensor) -> Latents:
        """Token ``ids`` and ``mask`` (B, L) to latents ``z`` (B, L, D), zero at padding."""
        mask = mask.bool()
        z = self.whitening(self.states(ids, mask), mask)
        if self.bottleneck is not None:
            z = self.bottleneck_whitening(self.bottleneck(z), mask)
        return Latents(z, mask)

    @torch.no_grad()
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The encoder's states (B, L, W) at ``layer``; arbitrary, but finite, at padding."""
        prefix = self.prefix.expand(len(ids), -1)
        ids, seen = torch.cat([prefix, ids], 1), torch.cat([torch.ones_like(prefix), mask.long()], 1)
        output = self.network(input_ids=ids, attention_mask=seen, output_hidden_states=True)
        return output.hidden_states[self.layer][:, len(self.prefix) :]

    @torch.no_grad()
    def first_codes(self) -> Tensor | None:
        """What a readout may start from: centred input embeddings, (V, D) of unit rms; None if they are not W wide."""
        table = self.network.get_input_embeddings().weight[: self.config["vocab_size"]].float()
        if table.shape[1] != len(self.whitening.mean):
            return None
        codes = table - table.mean(0)
        if self.bottleneck is not None:
            codes = self.bottleneck(codes)
        return F.normalize(codes, dim=-1) * codes.shape[1] ** 0.5

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise ``UserError`` unless every token of the encoder's own tokenizer has the same id in ``tokenizer``."""
        if self.source is None:  # of a saved model, which brings its tokenizer
            return
        if not _own_tokenizer(self.source).get_vocab().items() <= tokenizer.get_vocab().items():
            raise UserError(
                f"the data's tokenizer is not that of model.autoencoder, {self.source}: pass "
                f"--data.tokenizer={self.source}"
            )


def _read_config(model: str | dict[str, Any]) -> Any:
    """The configuration of a folder, a hub name or a saved model."""
    from transformers import AutoConfig

    if isinstance(model, dict):
        return AutoConfig.for_model(**model)
    folder = Path(model).expanduser()
    if not folder.is_dir() and (folder.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise UserError(f"model.autoencoder.model is {model}, which is no folder: {ENCODERS}")
    return _loaded(AutoConfig.from_pretrained, model, ENCODERS)


def _loaded(load: Callable[..., Any], source: str, advice: str, **options: Any) -> Any:
    """What ``load`` makes of a folder or a hub name."""
    folder = Path(source).expanduser()
    try:
        with quiet():
            return load(str(folder) if folder.is_dir() else source, **options)
    except Exception as error:  # foreign files in a foreign library, which may raise anything
        raise UserError(f"{source} cannot be loaded ({first_line(error, 160)}): {advice}") from None


def _kept_layers(layer: int, num_layers: int) -> tuple[int, int]:
    """``layer`` counted from 0, and how many to keep: one more, since the states behind the last may be normalised."""
    if not -num_layers - 1 <= layer <= num_layers:
        raise UserError(
            f"model.autoencoder.layer is {layer}, expected a number from {-num_layers - 1} to {num_layers}: the model "
            f"has {num_layers} layers, and 0 are its embeddings"
        )
    layer %= num_layers + 1
    return layer, min(layer + 1, num_layers)


def _build(config: Any, source: str | None) -> Any:
    """The encoder in float32: with the weights in ``source``, or with fresh ones."""
    from transformers import AutoModelForTextEncoding

    if type(config) not in AutoModelForTextEncoding._model_mapping:
        raise UserError(f"{source or 'the saved encoder'} is of type {config.model_type}: {ENCODERS}")
    if source is None:
        model = AutoModelForTextEncoding.from_config(config)
    else:
        options = {"config": config, "output_loading_info": True, "use_safetensors": True}
        model, report = _loaded(AutoModelForTextEncoding.from_pretrained, source, ENCODERS, **options)
        missing = sorted(name for name in report["missing_keys"] if NOT_NEEDED not in name)
        if missing:
            raise UserError(
                f"{source} lacks {len(missing)} weights, first {missing[0]}, which would be random: give a whole model"
            )
    if hasattr(model, "shared"):  # T5 holds its embeddings twice
        model = model.encoder
    if hasattr(model, NOT_NEEDED):
        setattr(model, NOT_NEEDED, None)
    return model.float().eval()


def _own_tokenizer(source: str) -> Any:
    """The tokenizer that lies beside a model."""
    from transformers import AutoTokenizer

    folder = Path(source).expanduser()
    if folder.is_dir() and not any((folder / f"tokenizer{end}.json").exists() for end in ("", "_config")):
        raise UserError(f"{source} holds no tokenizer.json: put the model's own there")  # an empty one would load
    return _loaded(AutoTokenizer.from_pretrained, source, "fetch its tokenizer again")


def _written_before(tokenizer: Any) -> list[int]:
    """The ids that a tokenizer writes before a text."""
    plain, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    places = [place for place in range(len(whole)) if whole[place : place + len(plain)] == plain]
    return whole[: places[0]] if places else []


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no warnings of transformers: what matters of its report becomes an error or a note of ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
