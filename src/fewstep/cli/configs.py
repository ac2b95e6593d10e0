"""``fewstep configs``: the settings files that the package brings."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fewstep.cli.output import check_free, make_folder
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError
from fewstep.settings import configs_folder, shipped_configs


@dataclass(kw_only=True)
class ConfigsOptions:
    """List the shipped settings, or copy them into a folder to change them.

    Args:
        action: what to do.
        folder: where copy writes the files.
        overwrite: replace files that are there.
    """

    action: Literal["list", "copy"] = field(default="list", metadata={"positional": True})
    folder: Path | None = field(default=None, metadata={"positional": True})
    overwrite: bool = False


def main(argv: list[str]) -> int:
    """List or copy as ``argv`` says; returns the exit code."""
    options = parse_options("configs", ConfigsOptions, argv)
    shipped = shipped_configs()
    if options.action == "copy":
        copy(list(shipped.values()), options.folder, overwrite=options.overwrite)
        print(f"{options.folder}: {len(shipped)} files; train with --config {options.folder}/flow.yaml")
        return 0
    if options.folder is not None:
        raise UserError(f"{options.folder}: fewstep configs list takes no folder")
    width = max(map(len, shipped))
    for name, file in shipped.items():
        purpose = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        print(f"{name:<{width}}  {purpose}")
    print("\nfewstep train fit --config NAME [--config objectives/NAME] [--size NAME of sizes/]")
    return 0


def copy(files: list[Path], folder: Path | None, *, overwrite: bool) -> None:
    """Copy the shipped ``files`` below ``folder``. Raises ``UserError`` before anything is written over."""
    if folder is None:
        raise UserError("no folder given: fewstep configs copy FOLDER")
    targets = {file: folder / file.relative_to(configs_folder()) for file in files}
    for target in targets.values():
        check_free(target, overwrite=overwrite)
    for file, target in targets.items():
        make_folder(target.parent)
        shutil.copyfile(file, target)
