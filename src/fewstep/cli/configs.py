"""``fewstep configs``: the settings files that the package brings."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fewstep.cli.output import check_free, make_folder
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError
from fewstep.settings import shipped_configs


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
    """List or copy as ``argv`` says; returns the exit code. Nothing is copied where a file is in the way."""
    options = parse_options("configs", ConfigsOptions, argv)
    shipped = shipped_configs()
    if options.action == "list":
        if options.folder is not None:
            raise UserError(f"{options.folder}: fewstep configs list takes no folder")
        width = max(map(len, shipped))
        for name, file in shipped.items():
            purpose = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
            print(f"{name:<{width}}  {purpose}")
        print("\nfewstep train fit --config NAME [--config objectives/NAME] [--size NAME of sizes/]")
        return 0
    if options.folder is None:
        raise UserError("no folder given: fewstep configs copy FOLDER")
    targets = {file: options.folder / f"{name}.yaml" for name, file in shipped.items()}
    for target in targets.values():
        check_free(target, overwrite=options.overwrite)
    for file, target in targets.items():
        make_folder(target.parent)
        shutil.copyfile(file, target)
    print(f"{options.folder}: {len(shipped)} files; train with --config {options.folder}/flow.yaml")
    return 0
