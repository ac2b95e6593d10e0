"""``fewstep diagnose --adapter``: models that are not ours."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import at_least_one
from fewstep.cli.device import pick_device
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.adapters import ImageDecoder, Loading, TextDecoder
    from fewstep.evaluation import Diagnosis
    from fewstep.evaluation.processes import Processes

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
"""Adapter to those of the options below that mean something to it."""
OPTIONS = (*TEXT, *IMAGES, *LOADED, *LINEAR)
SPELLED = {"trust_remote_code": "trust-remote-code", "allow_pickle": "allow-pickle"}
TOKENS = 32
DTYPES = ("float32", "float64", "bfloat16", "float16")


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--adapter`` and what belongs to it."""
    group = parser.add_argument_group("models that are not ours (docs/adapters.md)")
    group.add_argument(
        "--adapter",
        choices=tuple(USES),
        help="what PATH is: a model of transformers or diffusers (a folder or a hub name), or module:function",
    )
    group.add_argument("--text", help="the text to measure on, as --source takes it (default: sotu)")
    group.add_argument("--tokens", type=at_least_one, help=f"tokens in a block (default: {TOKENS})")
    group.add_argument("--readout", choices=("fitted", "tied"), help="encoder-linear: which readout (default: fitted)")
    group.add_argument("--linear", type=Path, help="encoder-linear: a safetensors file with weight and bias instead")
    group.add_argument("--images", help="autoencoder-kl: digits, shapes or a folder of images (default: shapes)")
    group.add_argument("--image_size", type=at_least_one, help="autoencoder-kl: pixels (default: the model's own)")
    group.add_argument("--dtype", choices=DTYPES, help="precision of the model (default: float32)")
    group.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="let the model run code that it brings"
    )
    group.add_argument(
        "--allow-pickle", action="store_true", default=None, help="read weights from pickle files, which may run code"
    )


def check_adapter_options(args: argparse.Namespace) -> None:
    """Raise ``UserError`` for an option that does not belong to the adapter, or to no adapter."""
    given = [name for name in OPTIONS if getattr(args, name) is not None]
    if args.adapter is None:
        if given:
            raise UserError(
                f"{_flag(given[0])} belongs to a model that is not ours: pass --adapter too, or leave it out"
            )
        return
    if args.source is not None:
        raise UserError("--source belongs to our own models: give the text by --text where there is --adapter")
    if wrong := [name for name in given if name not in USES[args.adapter]]:
        takes = ", ".join(map(_flag, USES[args.adapter])) or "none of these options"
        raise UserError(f"--adapter {args.adapter} does not take {_flag(wrong[0])}: it takes {takes}")
    if args.readout is not None and args.linear is not None:
        raise UserError(f"--readout {args.readout} beside --linear {args.linear}: give one of the two")


def adapter_name(path: str) -> str:
    """What a model is called in the name of a folder: the last part of a path, a hub name with - for /."""
    local = Path(path).expanduser()
    name = local.resolve().name if local.exists() else path.strip("/")
    return name.replace("/", "-").replace(":", "-")


def diagnose_adapter(
    args: argparse.Namespace,
    only: list[str] | None,
    progress: Callable[[int, int, str], None] | None,
    processes: "Processes",
) -> "Diagnosis":
    """Load the decoder that ``args`` name and measure it; ``processes`` share the measurements."""
    from fewstep.evaluation import diagnose_decoder
    from fewstep.evaluation.decoder_diagnosis import check_chosen

    if args.adapter != "callable":  # of what kind that is, it tells when it has run
        check_chosen(only, images=args.adapter == "autoencoder-kl")
    decoder, data, packages = LOADERS[args.adapter](args)
    return diagnose_decoder(
        decoder,
        num_examples=args.examples,
        num_positions=args.positions,
        seed=args.seed,
        only=only,
        progress=progress,
        processes=processes,
        data=data,
        packages=packages,
    )


Loaded = tuple["TextDecoder | ImageDecoder", dict[str, Any] | None, tuple[str, ...]]
"""The decoder, what it is measured on, and the packages that it is made of."""


def _text_model(args: argparse.Namespace) -> Loaded:
    from fewstep import adapters

    tokens = args.tokens or TOKENS
    if args.positions > tokens:
        raise UserError(f"positions is {args.positions}: expected a number from 1 to {tokens}, the tokens of a block")
    source = adapters.TextSource(
        source=args.text or "sotu",
        tokens=tokens,
        examples=args.examples,
        text_field=args.text_field,
        max_documents=args.max_documents,
        cache_dir=args.cache_dir,
    )
    if args.adapter == "encoder-linear":
        choice = adapters.ReadoutChoice(args.readout or "fitted", args.linear, seed=args.seed)
        decoder, text = adapters.load_encoder_linear(args.path, source, _loading(args), choice)
    else:
        load = {
            "seq2seq": adapters.load_seq2seq,
            "causal-lm": adapters.load_causal_lm,
            "masked-lm": adapters.load_masked_lm,
        }[args.adapter]
        decoder, text = load(args.path, source, _loading(args))
    return decoder, text.data, ("transformers", "tokenizers")


def _image_model(args: argparse.Namespace) -> Loaded:
    from fewstep.adapters import load_autoencoder_kl

    images = args.images or "shapes"
    decoder = load_autoencoder_kl(
        args.path, images, _loading(args), num_examples=args.examples, image_size=args.image_size
    )
    return decoder, {"source": images, "shape": list(decoder.images.shape[1:])}, ("diffusers",)


def _callable(args: argparse.Namespace) -> Loaded:
    from fewstep.adapters import load_callable

    return load_callable(args.path), None, ()


LOADERS: dict[str, Callable[[argparse.Namespace], Loaded]] = {
    **dict.fromkeys(("seq2seq", "causal-lm", "masked-lm", "encoder-linear"), _text_model),
    "autoencoder-kl": _image_model,
    "callable": _callable,
}


def _loading(args: argparse.Namespace) -> "Loading":
    from fewstep.adapters import Loading

    return Loading(
        device=pick_device(args.device),
        dtype=args.dtype or "float32",
        trust_remote_code=bool(args.trust_remote_code),
        allow_pickle=bool(args.allow_pickle),
    )


def _flag(name: str) -> str:
    return f"--{SPELLED.get(name, name)}"
