"""Access to the hub: a failure is one line, and comes soon."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, first_line

_PROBE_SECONDS = 10.0


def _unreachable(kind: str, name: str, error: BaseException) -> UserError:
    return UserError(
        f"{kind} '{name}' is no local path and the hub did not give it ({type(error).__name__}: "
        f"{first_line(error, 160)}): offline or misspelt; give a local file or folder, or set HF_HUB_OFFLINE=1 to use "
        "a copy downloaded before"
    )


def check_on_hub(kind: str, name: str) -> str:
    """The commit that the hub has for a ``"data set"``, ``"tokenizer"`` or ``"model"``; ``"offline"`` under
    HF_HUB_OFFLINE.

    One request, tried once: the libraries' own retries would keep a user without a network waiting for half a minute.
    Raises ``UserError`` for no answer, or no such name.
    """
    from huggingface_hub import HfApi, constants, errors

    if constants.HF_HUB_OFFLINE:
        return "offline"
    api = HfApi()
    ask: Any = {"data set": api.dataset_info}.get(kind, api.model_info)
    # Which HTTP library raises depends on the version of huggingface_hub; its own error stands on that one's base.
    http_error: Any = errors.HfHubHTTPError.__bases__[0]
    try:
        return str(ask(name, timeout=_PROBE_SECONDS).sha)
    except (http_error, errors.HFValidationError, OSError) as error:
        raise _unreachable(kind, name, error) from None


def is_downloaded(name: str) -> bool:
    """Whether the tokenizer ``name`` lies in the local cache of the hub's library."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "tokenizer.json"), str)


def load_train_split(name: str, *, streaming: bool) -> Any:
    """The train split of ``owner/name`` or ``owner/name:config``: a ``Dataset``, or an ``IterableDataset`` to stream.

    Raises ``UserError`` if it is out of reach, misspelt, without a train split, or in need of a configuration.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repository, _, config = name.partition(":")
    check_on_hub("data set", repository)
    try:
        return load_dataset(repository, config or None, split="train", streaming=streaming)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise _unreachable("data set", name, error) from None


def model_snapshot(name: str, patterns: Sequence[str]) -> Path:
    """The local folder of the hub's model ``name``, with the files that ``patterns`` name, fetched if need be.

    Raises ``UserError`` if it is out of reach or misspelt.
    """
    from huggingface_hub import constants, errors, snapshot_download

    check_on_hub("model", name)
    http_error: Any = errors.HfHubHTTPError.__bases__[0]
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=constants.HF_HUB_OFFLINE))
    except (http_error, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _unreachable("model", name, error) from None
