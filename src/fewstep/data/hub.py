"""Access to the hub: a failure is one line, and comes soon."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewstep.errors import UserError, first_line

_PROBE_SECONDS = 10.0


def looks_local(name: str) -> bool:
    """Whether a name that does not exist here is a mistyped path, which would take the hub seconds to deny.

    It has more than one slash, begins with a dot, ~ or a folder that exists here, or ends like one of our files.
    """
    first, _, rest = name.partition("/")
    is_path = "/" in rest or name.startswith((".", "~", "/")) or (bool(rest) and Path(first).is_dir())
    return is_path or name.endswith((".ckpt", ".safetensors", ".json"))


@contextmanager
def one_line_errors(kind: str, name: str) -> Iterator[None]:
    """Errors as ``UserError``: which one is raised depends on the versions of the hub's and of the HTTP library."""
    try:
        yield
    except Exception as error:
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
    with one_line_errors(kind, name):
        return str(ask(name, timeout=_PROBE_SECONDS).sha)


def model_snapshot(
    path_or_name: str,
    patterns: Sequence[str],
    *,
    ignored: Sequence[str] = (),
    kind: str = "model",
    revision: str | None = None,
) -> Path:
    """The folder ``path_or_name``, or what the hub's model of that name has of the files ``patterns``, fetched.

    Files that match ``ignored`` too are left out. Raises ``UserError``, about a ``kind``, if neither exists.
    """
    from huggingface_hub import constants, snapshot_download

    local = Path(path_or_name).expanduser()
    if local.is_dir():
        return local
    if local.exists() or looks_local(path_or_name):
        remedy = "give a folder written by save_pretrained, or a hub name"
        raise UserError(f"{kind} {path_or_name} is no folder: {remedy}")
    check_on_hub(kind, path_or_name)
    with one_line_errors(kind, path_or_name):
        folder = snapshot_download(
            path_or_name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
            local_files_only=constants.HF_HUB_OFFLINE,
        )
        return Path(folder)
