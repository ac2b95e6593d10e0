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
    "HeadModule": "head",
    "LanguageModelModule": "language_model",
    "ImageAutoencoderModule": "image_autoencoder",
    "ImageFlowModule": "image_flow",
}
"""Training module to its section in a size file."""
LARGEST_FILE_BYTES = 1_000_000
"""Of a file of settings: YAML is read at about a megabyte in ten seconds, and nobody writes so many settings."""


def expand_size(argv: list[str]) -> list[str]:
    """Replace ``--size NAME`` by the settings that this size gives to the stage named by ``--config``.

    NAME is a size shipped in ``configs/sizes`` or a YAML file of that form. The settings stand where ``--size`` stood,
    so it comes after ``--config``, and later arguments still override it. Raises UserError for an unknown size, where
    no ``--config`` before it names a stage, and for a section of another name than a stage's.
    """
    found = _find_option(argv, "--size")
    if found is None:
        return list(argv)
    start, stop, name = found
    sections = size_settings(name)
    section = sections.get(stage_of(argv[:start]), {})
    if _find_option(argv[stop:], "--size") is not None:
        raise UserError("--size is given twice: give one")
    return [*argv[:start], *(["--config", json.dumps(section)] if section else []), *argv[stop:]]


def size_settings(name: str) -> dict[str, Any]:
    """The sections of a size, by stage."""
    shipped = configs_folder() / "sizes"
    file = Path(name) if name.endswith((".yaml", ".yml")) else shipped / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
        raise UserError(f"--size {name}: no such size; expected one of {known}, or a YAML file")
    sections = read_yaml(file)
    if strangers := [name for name in sections if name not in STAGES.values()]:
        raise UserError(f"{file}: unknown key {', '.join(map(str, strangers))}; expected {', '.join(STAGES.values())}")
    return sections


def stage_of(argv: list[str]) -> str:
    """The stage that the first ``--config`` (or ``-c``) trains."""
    found = _find_option(argv, "--config", "-c")
    if found is None:
        raise UserError("--size needs a --config before it, such as --config configs/flow.yaml")
    model = read_yaml(Path(found[2])).get("model")
    class_path = str(model.get("class_path", "")) if isinstance(model, dict) else ""
    stage = STAGES.get(class_path.rpartition(".")[2])
    if stage is None:
        raise UserError(f"--config {found[2]} names model {class_path!r}: --size knows {', '.join(STAGES)}")
    return stage


def _find_option(argv: list[str], *names: str) -> tuple[int, int, str] | None:
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name not in names:
            continue
        if equals:
            return index, index + 1, value
        if index + 1 == len(argv):
            raise UserError(f"{name} needs a value")
        return index, index + 2, argv[index + 1]
    return None


def check_settings_files(argv: list[str]) -> None:
    """Raise ``UserError`` where a file that a ``--config`` names is there but holds no settings: the parser of the
    command line would not name the file."""
    while (found := _find_option(argv, "--config", "-c")) is not None:
        _, stop, name = found
        if not name.lstrip().startswith("{") and Path(name).is_file():
            read_yaml(Path(name))
        argv = argv[stop:]


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a file. Raises ``UserError`` where it cannot be read, is larger than :data:`LARGEST_FILE_BYTES`,
    is not YAML, or holds no mapping."""
    try:
        if (size := file.stat().st_size) > LARGEST_FILE_BYTES:
            raise UserError(
                f"{file} has {size:,} bytes: expected a file of settings, of at most {LARGEST_FILE_BYTES:,}"
            )
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}: give a text file in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML ({error}): mend it there") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings: expected a YAML mapping")
    if "\\u0000" in json.dumps(content, default=str):
        raise UserError(f"{file} holds a NUL character in a key or a value: take it out, no name can have one")
    return content
