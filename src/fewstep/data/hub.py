"""Access to the hub: a failure is one line, and comes soon."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, first_line

_PROBE_SECONDS = 10.0


@contextmanager
def _one_line(kind: str, name: str, *more: type[Exception]) -> Iterator[None]:
    """Errors of the hub's libraries, and ``more``, as ``UserError``."""
    from huggingface_hub import errors

    # Which HTTP library raises depends on the version of huggingface_hub; its own error is derived from that one's.
    http_error: Any = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except (http_error, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError, ValueError, *more) as error:
        raise UserError(
            f"{kind} '{name}' is no local path and the hub did not give it ({type(error).__name__}: "
            f"{first_line(error, 160)}): offline or misspelt; give a local file or folder, or set HF_HUB_OFFLINE=1 to "
            "use a copy downloaded before"
        ) from None


def check_on_hub(kind: str, name: str) -> str:
    """The commit that the hub has for a "data set", "tokenizer" or "model"; "offline" under HF_HUB_OFFLINE.

    One request, tried once: the libraries' own retries would keep a user without a network waiting for half a minute.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return "offline"
    ask: Any = HfApi().dataset_info if kind == "data set" else HfApi().model_info
    with _one_line(kind, name):
        return str(ask(name, timeout=_PROBE_SECONDS).sha)


def is_downloaded(name: str) -> bool:
    """Whether the tokenizer ``name`` lies in the local cache of the hub's library."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "tokenizer.json"), str)


def load_train_split(name: str, *, streaming: bool) -> Any:
    """The train split of ``owner/name`` or ``owner/name:config``: a ``Dataset``, to stream an ``IterableDataset``."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repository, _, config = name.partition(":")
    check_on_hub("data set", repository)
    with _one_line("data set", name, DatasetsError, RuntimeError):
        return load_dataset(repository, config or None, split="train", streaming=streaming)


def model_snapshot(name: str, patterns: Sequence[str]) -> Path:
    """The local folder of the hub's model ``name``, with the files that ``patterns`` name, fetched if need be."""
    from huggingface_hub import constants, snapshot_download

    check_on_hub("model", name)
    with _one_line("model", name):
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=constants.HF_HUB_OFFLINE))
