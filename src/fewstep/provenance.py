"""What a result was computed with: code, versions, command and machine, without any secrets."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("lightning", "transformers", "tokenizers", "datasets", "numpy")
"""Beside fewstep and torch, those whose versions figures and texts may depend on."""

_SECRET_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)


def provenance(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What ``fewstep COMMAND ARGUMENTS`` computes its results with, as plain values.

    ``commit`` of the checkout that the code runs from (None for an installed package), ``changed`` whether tracked
    files differ from it, ``versions`` by package, ``command`` as one line for a shell without the environment's
    secrets, ``hardware``. No time and no name of a machine or person: the same command gives the same values. It is
    stored beside results and never hashed, so that rows of two machines may share a table.
    """
    commit, changed = checkout(Path(__file__).parent)
    line = without_secrets(shlex.join(["fewstep", command, *arguments]))
    return {
        "commit": commit,
        "changed": changed,
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
        "command": line.encode(errors="backslashreplace").decode(),  # a file's name need not be UTF-8
        "hardware": hardware(),
    }


def checkout(package: Path) -> tuple[str | None, bool | None]:
    """The commit of the git checkout that tracks ``package``, and whether its tracked files were changed since.

    None for both without git, and for a package that is not tracked, such as one installed inside another checkout.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return _git(package, "rev-parse", "HEAD"), None if changes is None else bool(changes)


@cache
def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None if it fails. Asked once: the code that runs is loaded already."""
    command = ["git", "-C", str(folder), *arguments]
    # Inside a git hook these name the hook's repository, whatever the folder.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=own)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions(*packages: str) -> dict[str, str]:
    """Versions by name of fewstep, torch and further ``packages``, as far as they are installed."""
    installed = {}
    for name in ("fewstep", "torch", *packages):
        with suppress(PackageNotFoundError):  # the code may be run from a checkout that nobody installed
            installed[name] = version(name)
    return installed


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, GPU (None without one), operating system."""
    import torch  # takes seconds, which --help should not

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def without_secrets(text: str) -> str:
    """``text`` with the value of every secret environment variable replaced by its name: "[WANDB_API_KEY]".

    A variable is secret if its name has the word key, token, secret, password or credential between underscores.
    Values of fewer than 8 characters stay: a text contains those by chance.
    """
    for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1])):
        if len(value) >= 8 and _SECRET_NAME.search(name):
            text = text.replace(value, f"[{name}]")
    return text
