"""Settings in YAML: shipped files found by name, read strictly, and the options that take them.

Training and every other command build their jsonargparse parsers from :class:`ConfigOption` and :data:`PARSER`.
"""

import json
import re
from argparse import SUPPRESS, Action
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace, get_loader, set_loader

import fewstep
from fewstep.errors import UserError

STAGES = (
    *("autoencoder", "flow", "distribution_matching", "head", "language_model"),
    *("image_autoencoder", "image_flow"),
)
"""Sections of a size file, each named like the stage that it changes."""
LARGEST_FILE_BYTES = 1_000_000
"""YAML is parsed at about 0.1 MB/s; a larger file is not a file of settings."""
STRICT_YAML = "strict_yaml"
PARSER: dict[str, Any] = {"parser_mode": STRICT_YAML, "exit_on_error": False, "allow_abbrev": False}
"""Arguments of every parser: errors are raised, options are written out, duplicate keys are refused."""
PARSER_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value type", "Expected a <class 'NoneType'>")
"""How the lines of jsonargparse begin that do not say what is wrong."""
LONGEST_PART = 400
"""Longer lines repeat all settings of a class."""
_HOME = re.compile(r"~[^/\s]*(/|$)")
_EXPONENT = re.compile(r"(--[\w.]+=|)(\d+(?:\.\d*)?[eE]\+?\d+)")


def configs_folder() -> Path:
    """The folder of the shipped YAML files: inside an installed package, else at the root of the checkout."""
    package = Path(fewstep.__file__).parent
    for folder in (package / "configs", package.parents[1] / "configs"):
        if folder.is_dir():
            return folder
    raise UserError(f"no configs folder in {package} or at the root of its checkout: install fewstep again")


def shipped_configs() -> dict[str, Path]:
    """The shipped YAML files by name: ``flow``, ``objectives/mean_flow``, ``sizes/hour``."""
    folder = configs_folder()
    files = sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_config(given: str, option: str = "--config", prefix: str = "") -> Path:
    """The file ``given``, or else the shipped one of this name: ``flow``, ``flow.yaml``, ``configs/flow.yaml``.

    ``prefix`` is the folder of the shipped names in question, such as ``sizes/``.
    """
    file = Path(expand_home(given))
    if file.is_file():
        return file
    shipped = {name.removeprefix(prefix): path for name, path in shipped_configs().items() if name.startswith(prefix)}
    name = given.removeprefix("./").removeprefix("configs/").removeprefix(prefix)
    if name.removesuffix(".yaml") not in shipped:
        raise UserError(f"{option} {given}: no such file; expected a YAML file or one of {', '.join(shipped)}")
    return shipped[name.removesuffix(".yaml")]


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a file. Raises ``UserError`` unless it is a YAML mapping without duplicate keys."""
    try:
        if (size := file.stat().st_size) > LARGEST_FILE_BYTES:
            raise UserError(f"{file} has {size:,} bytes: expected settings, of at most {LARGEST_FILE_BYTES:,}")
        content = yaml.safe_load(strict_text(file.read_text(encoding="utf-8"), str(file)))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}: give a text file in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML ({error}): correct it there") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings: expected a YAML mapping")
    if "\\u0000" in json.dumps(content, default=str):
        raise UserError(f"{file} holds a NUL character in a key or a value: delete it")
    return content


def strict_text(text: str, source: str) -> str:
    """YAML ``text`` with whole numbers such as 1e2 written out, which YAML 1.1 reads as text.

    Raises ``UserError`` for a key that comes twice in one mapping: YAML would drop the first silently.
    """
    nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
    numbers = {}
    for node in nodes:  # to which those inside are added
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.ScalarNode) and node.style is None:
            numbers[node.start_mark.index] = node
        elif isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
            keys = [key.value for key, _ in node.value]
            for index, (key, _) in enumerate(node.value):
                if isinstance(key.value, str) and key.value in keys[:index]:
                    line = key.start_mark.line + 1
                    raise UserError(f"{source}, line {line}: {key.value!r} is given twice in one mapping; keep one")
    for start, node in sorted(numbers.items(), reverse=True):
        text = text[:start] + whole_number(node.value) + text[node.end_mark.index :]
    return text


def whole_number(text: str) -> str:
    """``1e2`` and ``--steps=1e2`` as ``100`` and ``--steps=100``; any other text as it is."""
    match = _EXPONENT.fullmatch(text)
    if match is None or not (number := float(match[2])).is_integer() or number > 2**63:
        return text
    return f"{match[1]}{int(number)}"


def _load(text: str) -> Any:
    return get_loader("yaml")(strict_text(text, "settings"))


set_loader(STRICT_YAML, _load, (yaml.YAMLError,))


def expand_home(value: Any) -> Any:
    """``value`` with ``~`` and ``~name`` expanded in every path; namespaces, dicts and lists are walked.

    Raises ``UserError`` for a user that this machine does not know.
    """
    if isinstance(value, Namespace):
        for name, item in vars(value).items():
            setattr(value, name, expand_home(item))
        return value
    if isinstance(value, dict):
        return {name: expand_home(item) for name, item in value.items()}
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    if not isinstance(value, str | Path) or not _HOME.match(str(value)):
        return value
    try:
        return type(value)(Path(value).expanduser())
    except RuntimeError:
        raise UserError(f"{value}: no home folder is known for what follows the ~: write the whole path") from None


def parser_message(error: Exception) -> str:
    """A message of jsonargparse in one line, without what the parser says about its own workings."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    text = " ".join(line for line in lines if not line.startswith(PARSER_NOISE) and len(line) < LONGEST_PART)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.(?=Literal)", r"\1", text)


class ConfigOption(ActionConfigFile):
    """``--config NAME_OR_FILE``: a YAML file, the name of a shipped one, or settings in JSON."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Merge the settings into ``cfg``."""
        if not values.lstrip().startswith("{"):
            file = find_config(values)
            read_yaml(file)
            values = str(file)
        super().__call__(parser, cfg, values, option_string)


class SizeOption(Action):
    """``--size NAME_OR_FILE``: a second ``--config``, the section of a size file for the stage of the first one."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        text = "a shipped size or a YAML file of sections by stage, for the stage of the --config before it"
        super().__init__(option_strings, SUPPRESS, default=SUPPRESS, metavar="NAME", help=text)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Merge the section into ``namespace``; later options override it."""
        class_path = (namespace.get("model") or {}).get("class_path")
        if class_path is None:
            raise UserError("--size needs a --config before it, such as --config flow")
        if section := size_sections(values).get(stage_of(class_path)):
            ConfigOption.apply_config(parser, namespace, "config", json.dumps(section))


def stage_of(class_path: str) -> str:
    """The stage that a training module trains: ``fewstep.training.LanguageModelModule`` is ``language_model``."""
    name = class_path.rpartition(".")[2].removesuffix("Module")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def size_sections(name: str) -> dict[str, Any]:
    """The settings of a size by stage."""
    file = find_config(name, "--size", prefix="sizes/")
    sections = read_yaml(file)
    if unknown := [key for key in sections if key not in STAGES]:
        raise UserError(f"{file}: unknown key {', '.join(map(str, unknown))}; expected {', '.join(STAGES)}")
    return sections
