"""What a result was made with: code, versions, command and machine, without a secret in any of them."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("fewstep", "torch", "lightning", "transformers", "tokenizers", "datasets", "numpy")
"""Those whose versions figures and texts may depend on."""

FEWEST_SECRET_CHARACTERS = 8
_SECRET_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_GIT_SECONDS = 10


def provenance(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What ``fewstep COMMAND ARGUMENTS`` makes its results with, as plain values (this project's definition).

    ``commit``: of the checkout that the code is run from, None for an installed package; ``changed`` whether tracked
    files differ from it. ``versions`` by package, Python's own among them. ``command``: one line for a shell, secrets
    of the environment blanked. ``hardware``: processor, number of cores, GPU or None, and operating system. There is no
    time and no name of a machine or person in it, so that the same command gives the same values.

    It belongs beside results, never into what is hashed: two machines of one protocol may share a table.
    """
    commit, changed = checkout(Path(__file__).parent)
    line = without_secrets(shlex.join(["fewstep", command, *arguments]))
    return {
        "commit": commit,
        "changed": changed,
        "versions": package_versions(),
        "command": line.encode(errors="backslashreplace").decode(),  # a file's name need not be UTF-8
        "hardware": dict(hardware()),
    }


def checkout(package: Path) -> tuple[str | None, bool | None]:
    """The commit of the git checkout that tracks ``package``, and whether its tracked files were changed since.

    None for both without git, and where the package merely lies below somebody else's checkout, as an installed one in
    a project's environment does.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


@cache
def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, None where it fails or is not there. Asked once: the code that runs is loaded already."""
    command = ["git", "-C", str(folder), *arguments]
    # Inside a git hook these name the hook's repository, whatever the folder.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True, env=own)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Versions by name: Python's, and those of :data:`PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the code may be run from a checkout that nobody installed
            continue
    return found


@cache
def hardware() -> Mapping[str, Any]:
    """Processor, cores that this process may use, GPU (None without one), operating system."""
    import torch  # takes seconds, which --help should not

    return {
        "processor": _processor(),
        "cores": _cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """Its name, which ``platform`` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _cores() -> int:
    """Those that this process may use, or all where the system does not tell."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def without_secrets(text: str) -> str:
    """``text`` with every value of a secret environment variable, told by its name, blanked: "[WANDB_API_KEY]".

    A secret variable is one whose name has the word key, token, secret, password or credential between underscores.
    Values of fewer than 8 characters stay: a text holds those by chance.
    """
    for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1])):
        if len(value) >= FEWEST_SECRET_CHARACTERS and _SECRET_NAME.search(name):
            text = text.replace(value, f"[{name}]")
    return text
