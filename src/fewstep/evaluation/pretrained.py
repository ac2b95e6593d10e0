"""Pretrained models from a folder or the hub, loaded whole or refused in one line."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.data import hub
from fewstep.errors import UserError, first_line
from fewstep.evaluation.memory import check_fits

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MAPPINGS = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
"""Which models each automatic class of transformers knows."""
CONFIG = "config.json"
OWN = {"format", "identity", "parts"}
"""Keys of the config of a model that fewstep itself saved."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded: where to, in which precision, and what of it is trusted.

    ``dtype`` is one of :data:`DTYPES`; ``trust_remote_code`` lets a model bring code of its own, ``allow_pickle`` lets
    weights be read from pickle files, which may run code. Raises ``UserError`` for an unknown dtype.
    """

    device: str = "cpu"
    dtype: str = "float32"
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype!r}: expected one of {', '.join(DTYPES)}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return DTYPES[self.dtype]


def model_folder(path_or_name: str, loading: Loading) -> Path:
    """The local folder of a model: ``path_or_name`` itself, or what the hub has under that name, fetched.

    Raises ``UserError`` where there is neither.
    """
    from huggingface_hub import constants, snapshot_download

    path = Path(path_or_name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or hub.looks_local(path_or_name):
        raise UserError(f"model {path_or_name} is no folder: give a folder written by save_pretrained, or a hub name")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    patterns += ["*.bin"] if loading.allow_pickle else []
    patterns += ["*.py"] if loading.trust_remote_code else []
    hub.check_on_hub("model", path_or_name)
    with hub.one_line_errors("model", path_or_name):
        offline = constants.HF_HUB_OFFLINE
        return Path(snapshot_download(path_or_name, allow_patterns=patterns, local_files_only=offline))


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder. Raises ``UserError`` where it is missing, no JSON object, or a model of ours."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {CONFIG}: give a folder written by save_pretrained") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / CONFIG} cannot be read as JSON ({first_line(error)}): fetch or write it again"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} holds no settings of a model: expected a JSON object")
    if config.keys() >= OWN:
        raise UserError(f"{folder} is a model of fewstep's own: leave --adapter out")
    return config


def check_weights(folder: Path, loading: Loading) -> None:
    """Raise ``UserError`` unless ``folder`` has weights that may be read and fit the memory."""
    if any(folder.glob("*.safetensors")):
        check_fits(folder, loading.torch_dtype, loading.device)
        return
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if not pickles:
        raise UserError(f"{folder} holds no weights: expected a .safetensors file beside {CONFIG}")
    if not loading.allow_pickle:
        raise UserError(
            f"{folder} holds its weights in {pickles[0]} only, a pickle that may run code: pass --allow_pickle if you "
            "trust it, or save it anew as safetensors"
        )


def load_transformers(
    auto: str, folder: Path, loading: Loading, *, purpose: str, ignored: Sequence[str] = ()
) -> tuple[Any, tuple[str, ...]]:
    """A model of transformers by its ``auto`` class's name, in evaluation mode without gradients; and notes.

    ``purpose`` is what the model is to be ("a causal language model"), for messages. Missing weights whose names
    contain one of ``ignored`` are not used and may stay random. Raises ``UserError`` for a broken or unknown config, a
    model that is no such thing, weights that are missing, too large or in a pickle, and code that is not trusted.
    """
    config = read_config(folder)
    check_kind(auto, config, folder, loading, purpose)
    check_weights(folder, loading)
    model, report = from_pretrained(
        auto,
        folder,
        dtype=loading.torch_dtype,
        purpose=purpose,
        name=str(folder),
        trust_remote_code=loading.trust_remote_code,
        use_safetensors=None if loading.allow_pickle else True,
        plain_attention=True,
    )
    check_report(report, str(folder), purpose, ignored)
    unexpected = sorted(report["unexpected_keys"])
    notes = (f"{len(unexpected)} weights of the file are not used, first {unexpected[0]}",) if unexpected else ()
    return model.to(loading.device), notes


def from_pretrained(
    auto: str,
    source: str | Path,
    *,
    dtype: torch.dtype,
    purpose: str,
    name: str,
    trust_remote_code: bool = False,
    use_safetensors: bool | None = None,
    plain_attention: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' report of its loading. ``name`` is what messages call it.

    ``plain_attention`` asks for attention written out, which can be differentiated in forward mode; it is for models
    that can. Raises ``UserError`` where transformers cannot load it.
    """
    import transformers

    loader: Any = getattr(transformers, auto)
    options: dict[str, Any] = {
        "dtype": dtype,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they stand in the report, which is looked at
        "trust_remote_code": trust_remote_code,
    }
    if use_safetensors is not None:
        options["use_safetensors"] = use_safetensors
    if plain_attention:
        options["attn_implementation"] = "eager"
    try:
        with quiet():
            model, report = loader.from_pretrained(str(source), **options)
    except Exception as error:  # another's files in another library: whatever it raises is told
        raise UserError(f"{name} cannot be loaded as {purpose} ({first_line(error, 160)})") from None
    return model.eval().requires_grad_(False), report


@contextmanager
def quiet() -> Iterator[None]:
    """Neither bars nor warnings of transformers: what matters of its report is told by us."""
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


def missing_weights(report: dict[str, Any]) -> list[str]:
    """Weights that the model has and its file has not, or in another shape."""
    mismatched = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    return sorted(report["missing_keys"]) + sorted(map(str, mismatched))


def check_report(report: dict[str, Any], name: str, purpose: str, ignored: Sequence[str] = ()) -> None:
    """Raise ``UserError`` where the file lacked weights: transformers would leave them random."""
    missing = [key for key in missing_weights(report) if not any(part in key for part in ignored)]
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} weights of {purpose}, first {missing[0]}: they would be random; give a whole "
            "model with its head, or take another --adapter"
        )


def check_kind(auto: str, config: dict[str, Any], folder: Path, loading: Loading, purpose: str) -> None:
    """Raise ``UserError`` unless ``config`` is of a model that the ``auto`` class of transformers loads as saved."""
    import transformers
    from transformers.models.auto import modeling_auto

    kind = config.get("model_type")
    if "auto_map" in config and not loading.trust_remote_code and not _is_known(kind):
        raise UserError(f"{folder} brings code of its own: pass --trust_remote_code if you trust it")
    if loading.trust_remote_code and "auto_map" in config:
        return
    if not _is_known(kind):
        raise UserError(
            f"{folder} is of the model type {kind!r}, which transformers {transformers.__version__} does not know: "
            "expected one that it knows in config.json"
        )
    mapping: Any = getattr(modeling_auto, MAPPINGS[auto])  # model type to names of classes
    names = {name for value in mapping.values() for name in ([value] if isinstance(value, str) else value)}
    named = config.get("architectures")
    saved = [name for name in named if hasattr(transformers, str(name))] if isinstance(named, list) else []
    if kind not in mapping or (saved and auto != "AutoModel" and not names.intersection(saved)):
        what = saved[0] if saved else f"a model of the type {kind}"
        raise UserError(
            f"{folder} is {what} and not {purpose}: take the --adapter that fits it, see docs/howto/other-models.md"
        )


def _is_known(kind: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(kind, str) and kind in CONFIG_MAPPING
