"""Settings in YAML: shipped files found by name, read strictly, and the options that take them.

Training and every other command build their jsonargparse parsers from :class:`ConfigOption` and :data:`PARSER`.
"""

import json
import re
from argparse import SUPPRESS, Action
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace, set_loader

import fewstep
from fewstep.errors import UserError

STAGES = (
    *("autoencoder", "flow", "distribution_matching", "head", "language_model"),
    *("image_autoencoder", "image_flow"),
)
"""Sections of a size file, each named like the stage that it changes."""
LARGEST_FILE_BYTES = 1_000_000
"""YAML is parsed at about 0.1 MB/s; a larger file is not a file of settings."""
PARSER: dict[str, Any] = {"parser_mode": "strict_yaml", "exit_on_error": False, "allow_abbrev": False}
"""Arguments of every parser: errors are raised, options are written out, duplicate keys are refused."""
PARSER_NOISE = ("Does not validate", "Subtypes:", "Errors:", "Given value type", "Expected a <class 'NoneType'>")
"""How the lines of jsonargparse begin that do not say what is wrong."""
LONGEST_PART = 400
"""Longer lines repeat all settings of a class."""
FLOAT = "tag:yaml.org,2002:float"
_HOME = re.compile(r"~[^/\s]*(/|$)")
_EXPONENT = r"\d+(?:\.\d*)?[eE][-+]?\d+"


class StrictLoader(yaml.SafeLoader):
    """YAML in which 1e2 is a whole number and a date is text. Raises ``UserError`` for a key that comes twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":timestamp")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Plain YAML would drop the first of two equal keys silently."""
        seen = []
        for key, _ in node.value:
            if key.value in seen:
                raise UserError(
                    f"line {key.start_mark.line + 1}: {key.value!r} is given twice in one mapping; keep one"
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A whole number where it is written as one, with an exponent."""
        number = super().construct_yaml_float(node)
        return int(number) if "e" in node.value.lower() and number.is_integer() else number


StrictLoader.add_implicit_resolver(FLOAT, re.compile(f"[-+]?{_EXPONENT}$"), list("-+0123456789"))
StrictLoader.add_constructor(FLOAT, StrictLoader.construct_yaml_float)
set_loader("strict_yaml", lambda text: yaml.load(text, StrictLoader), (yaml.YAMLError,))


def whole_number(word: str) -> str:
    """``1e2`` and ``--steps=1e2`` on a command line as ``100`` and ``--steps=100``; any other word as it is."""
    match = re.fullmatch(f"(--[\\w.]+=|)({_EXPONENT})", word)
    return f"{match[1]}{int(float(match[2]))}" if match and float(match[2]).is_integer() else word


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
            raise UserError(f"it has {size:,} bytes, and settings have at most {LARGEST_FILE_BYTES:,}")
        content = yaml.load(file.read_text(encoding="utf-8"), StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}: give a text file in UTF-8") from None
    except (yaml.YAMLError, UserError) as error:
        raise UserError(f"{file}, {error}: correct it there") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings: expected a YAML mapping")
    if "\\u0000" in json.dumps(content, default=str):
        raise UserError(f"{file} holds a NUL character in a key or a value: delete it")
    return content


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
