"""One dial for the size of a run: what a size changes against the stage's own YAML file."""

import json
from pathlib import Path
from typing import Any

import yaml

from fewstep.cli.edge import configs_folder
from fewstep.errors import UserError

STAGES = {
    "AutoencoderModule": "autoencoder",
    "FlowModule": "flow",
    "CommitmentModule": "commitment",
    "LanguageModelModule": "language_model",
}
"""Training module to its section in a size file."""


def expand_size(argv: list[str]) -> list[str]:
    """Replace ``--size NAME`` by the settings that this size gives to the stage named by ``--config``.

    NAME is a size shipped in ``configs/sizes`` or a YAML file of that form. The settings stand where ``--size`` stood, so later
    arguments still override them. Raises UserError for an unknown size, or where no ``--config`` names a stage.
    """
    found = _find_option(argv, "--size")
    if found is None:
        return list(argv)
    start, stop, name = found
    section = size_settings(name).get(stage_of(argv), {})
    return [*argv[:start], "--config", json.dumps(section), *argv[stop:]] if section else [*argv[:start], *argv[stop:]]


def size_settings(name: str) -> dict[str, Any]:
    """The sections of a size, by stage."""
    shipped = configs_folder() / "sizes"
    file = Path(name) if name.endswith((".yaml", ".yml")) else shipped / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
        raise UserError(f"--size {name}: no such size; expected one of {known}, or a YAML file")
    return _read_yaml(file)


def stage_of(argv: list[str]) -> str:
    """The stage that the last ``--config`` before any override trains."""
    found = _find_option(argv, "--config")
    if found is None:
        raise UserError("--size needs a --config before it, such as --config configs/flow.yaml")
    settings = _read_yaml(Path(found[2]))
    class_path = str(settings.get("model", {}).get("class_path", ""))
    stage = STAGES.get(class_path.rpartition(".")[2])
    if stage is None:
        raise UserError(f"--config {found[2]} names model {class_path!r}: --size knows {', '.join(STAGES)}")
    return stage


def _find_option(argv: list[str], option: str) -> tuple[int, int, str] | None:
    for index, argument in enumerate(argv):
        if argument.startswith(f"{option}="):
            return index, index + 1, argument.partition("=")[2]
        if argument == option:
            if index + 1 == len(argv):
                raise UserError(f"{option} needs a value")
            return index, index + 2, argv[index + 1]
    return None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings: expected a YAML mapping")
    return content
