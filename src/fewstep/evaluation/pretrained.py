"""Models of transformers from a folder or the hub, loaded whole or refused in one line."""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.autoencoders.pretrained import quiet
from fewstep.data import hub
from fewstep.errors import UserError, first_line

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
AUTOENCODER = "Autoencoder"
"""How the class names of diffusers' autoencoders begin."""


def model_folder(
    path_or_name: str, *, subfolder: str | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Path:
    """The local folder of a model: ``path_or_name`` itself, or what the hub has under that name, fetched.

    With ``subfolder``, that folder of a pipeline of diffusers, and nothing else of it is fetched. Small files come
    first: of a pipeline without ``subfolder``, and of a subfolder that holds no autoencoder, no weights are fetched.
    Raises ``UserError`` for both, if the model does not exist, and for weights that are missing, or in pickles only
    (which may run code) unless ``allow_pickle``.
    """
    if subfolder is not None and not re.fullmatch(r"\w[\w.-]*", subfolder):
        raise UserError(f"subfolder is {subfolder!r}: expected the name of a folder inside the model, such as vae")
    inside = f"{subfolder}/" if subfolder else ""

    def snapshot(*patterns: str) -> Path:
        # The hub's patterns match in folders below too.
        return hub.model_snapshot(path_or_name, [inside + each for each in patterns], ignored=[f"{inside}*/*"])

    folder = snapshot("config.json", "model_index.json")
    _check_kind(folder, path_or_name, subfolder)
    pickled, code = ["*.bin"] * allow_pickle, ["*.py"] * trust_remote_code
    folder = snapshot("*.json", "*.safetensors", "*.txt", "*.model", *pickled, *code) / (subfolder or "")
    if read_config(folder).keys() >= {"format", "identity", "parts"}:
        raise UserError(f"{folder} is a model of fewstep's own: leave --adapter out")
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if any(folder.glob("*.safetensors")) or (pickles and allow_pickle):
        return folder
    if pickles:
        raise UserError(
            f"{folder} holds its weights in {pickles[0]} only, a pickle that may run code: pass --allow_pickle if you "
            "trust it, or save it again as safetensors"
        )
    raise UserError(f"{folder} holds no weights: expected a .safetensors file beside config.json")


def _check_kind(folder: Path, name: str, subfolder: str | None) -> None:
    """Refuse a pipeline of diffusers without a subfolder, and a subfolder that holds no autoencoder."""
    if subfolder is None:
        if not (folder / "model_index.json").is_file():
            return
        index = read_config(folder, "model_index.json")
        parts = [key for key, kind in index.items() if isinstance(kind, list) and str(kind[-1]).startswith(AUTOENCODER)]
        advice = f"pass --adapter autoencoder-kl --subfolder {parts[0]}" if parts else "give one model, not a pipeline"
        raise UserError(f"{name} is a pipeline of several models ({index.get('_class_name')}): {advice}")
    name, advice = f"{name}/{subfolder}", "as --subfolder"
    if not (folder / subfolder / "config.json").is_file():
        raise UserError(f"{name} holds no config.json: give the folder of an autoencoder, such as vae, {advice}")
    kind = str(read_config(folder / subfolder).get("_class_name"))
    if not kind.startswith(AUTOENCODER):
        raise UserError(f"{name} is a {kind!r}: expected an autoencoder of diffusers, give its folder {advice}")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The settings in a folder's file ``name``. Raises ``UserError`` where it is missing or no JSON object."""
    file = folder / name
    if not file.is_file():
        raise UserError(f"{folder} holds no {name}: give a folder written by save_pretrained")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({first_line(error)}): fetch or write it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no settings of a model: expected a JSON object")
    return config


def from_pretrained(
    loader: Any, source: str | Path, *, purpose: str, name: str, unused: Sequence[str] = (), options: dict[str, Any]
) -> tuple[Any, list[str]]:
    """A model by the class ``loader`` of transformers or diffusers, in evaluation mode, and weights it does not use.

    ``purpose`` is what the model is to be ("a causal language model") and ``name`` what messages call it. Missing
    weights whose names contain one of ``unused`` may stay random; ``options`` go to the loader. Raises ``UserError``
    where it cannot be loaded, is another kind of model, or lacks weights, which the library would leave random.
    """
    try:
        with quiet():
            # Weights of another shape then stand in the report.
            options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **options}
            model, report = loader.from_pretrained(str(source), **options)
    except Exception as error:  # foreign files in a foreign library, which may raise anything
        config = Path(source) / "config.json"
        brings_code = config.is_file() and "auto_map" in read_config(config.parent)
        if "trust_remote_code" in str(error) or (brings_code and not options.get("trust_remote_code")):
            raise UserError(f"{name} brings code of its own: pass --trust_remote_code if you trust it") from None
        raise UserError(
            f"{name} cannot be loaded as {purpose} ({first_line(error, 160)}): give such a model, or fetch or "
            "write it again"
        ) from None
    saved_as = getattr(model.config, "architectures", None) or [type(model).__name__]
    if loader.__name__ != "AutoModel" and type(model).__name__ not in saved_as:
        raise UserError(f"{name} is {saved_as[0]} and not {purpose}: give such a model")
    other_shapes = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in unused)) + other_shapes
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} weights of {purpose}, first {missing[0]}: they would be random, give a "
            "whole model with its head"
        )
    return model.eval().requires_grad_(False), sorted(report["unexpected_keys"])


def check_memory(folder: Path, dtype: torch.dtype) -> None:
    """Raise ``UserError`` where the weights in ``folder`` cannot fit the machine's memory, before they are read."""
    from safetensors import SafetensorError, safe_open

    numbers = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as weights:
                numbers += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read as safetensors ({first_line(error)}): fetch it again") from None
    needed, memory = numbers * dtype.itemsize, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"{folder} needs {needed / 2**30:.1f} GiB for its weights, and the machine has {memory / 2**30:.1f} GiB: "
            "take a smaller --dtype or a smaller model"
        )
