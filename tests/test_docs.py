"""What README, docs and CONTRIBUTING name is there: commands and their options, files, modules, links."""

import ast
import importlib
import json
import re
import shlex
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli import main as entry
from fewstep.cli import parser as options_parser
from studies.docs_check import code_lines, words_of
from tests.runs import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_README_LINES = 160
PLACEHOLDERS = r"\.\.\.|my_ext|my_package|\b[A-Z]{3,}\b"
"""Words that stand for something of the reader's; such commands are checked for their options only."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def documented() -> dict[str, list[str]]:
    """Every command line of fewstep, in code and in tables, to its words."""
    commands: dict[str, list[str]] = {}
    for page in PAGES:
        inline = re.findall(r"`(fewstep \w+[^`]*)`", text_of(page))
        for line in [*code_lines(page), *inline]:
            words = words_of(line)
            if words:
                words += ["..."] if line in inline else []  # in a sentence or a table: may be shortened
                commands.setdefault(f"{name_of(page)}: {shlex.join(words)}", words)
    return commands


@cache
def parser_of(command: str) -> Any:
    """The parser of a command, as the command itself builds it."""
    caught: list[Any] = []
    build = options_parser.command_parser

    class Enough(Exception):
        pass

    def catch(name: str, options: type) -> Any:
        caught.append(build(name, options))
        raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options_parser, "command_parser", catch)
        with suppress(Enough):
            entry.dispatch([command])
    return caught[0]


def options_of(command: str) -> set[str]:
    return {option for action in parser_of(command)._actions for option in action.option_strings}


@cache
def argument_names() -> set[str]:
    """Every argument and field of a class or function in src: what a dotted option of training may end in."""
    names: set[str] = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return names


TRAIN_OPTIONS = {"--config", "--size", "--run_dir", "--ckpt_path", "--overwrite", "--help", "--print_config"}
SECTIONS = {"data", "model", "diagnostics", "samples", "compile", "recompute", "nonfinite", "ema", "optimizer"}


def training_option(option: str) -> str | None:
    """What is wrong with an option of training; None where nothing is."""
    name = option.partition("=")[0]
    section, _, rest = name.removeprefix("--").partition(".")
    if name in TRAIN_OPTIONS or (rest == "help" and section in SECTIONS):
        return None
    leaf = rest.rpartition(".")[2]
    if section == "trainer":
        from lightning import Trainer

        names = importlib.import_module("inspect").signature(Trainer.__init__).parameters
        first = rest.partition(".")[0]  # what comes behind is the logger's or the strategy's
        return None if first in names else f"Trainer has no {first}"
    if section in SECTIONS and leaf in argument_names():
        return None
    return f"{name} is no option of training"


@pytest.mark.parametrize("command", documented())
def test_a_command_that_the_docs_show_is_one(command: str) -> None:
    name, *words = documented()[command]
    assert name in entry.COMMANDS
    if name == "train":
        check_training(words)
    elif re.search(PLACEHOLDERS, command.partition(": ")[2]):
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given - {"--debug"} <= options_of(name)
    elif "--help" not in words:
        parser_of(name).parse_args(words)


def check_training(words: list[str]) -> None:
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word == "--config" and "my_" not in value:
            found = [ROOT / "configs" / f"{value}.yaml", ROOT / "configs" / value, ROOT / value]
            assert any(file.is_file() for file in found), value
        if word == "--size":
            assert (ROOT / "configs" / "sizes" / f"{value}.yaml").is_file() or value.endswith(".yaml")
        if word.startswith("--"):
            assert (problem := training_option(word)) is None, problem


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_an_option_that_a_page_names_is_one(page: Path) -> None:
    known = set().union(*(options_of(name) for name in entry.COMMANDS if name != "train")) | TRAIN_OPTIONS
    known |= {"--debug", "--version", "--config", "--help"}
    known |= {option for file in (ROOT / "studies").glob("*.py") for option in re.findall(r'"(--\w+)"', text_of(file))}
    problems = []
    for option in re.findall(r"`(?:[^`\n]* )?(--[a-z][\w.-]*)", text_of(page)):
        if option in known or option in OF_OTHERS:
            continue
        if "." in option and training_option(option) is None:
            continue
        problems.append(option)
    assert not problems


OF_OTHERS = {"--node_rank", "--ntasks-per-node", "--nproc_per_node", "--no-python"}
"""Options of torchrun and sbatch."""


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it for our headings."""
    plain = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(file: Path) -> set[str]:
    return {slug(line.lstrip("# ")) for line in text_of(file).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    problems = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page)):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if "reference/api/" in str(file) or file.match("docs/reference/api/*"):
            continue  # made when the site is built, which fails on a broken link
        if file.name == "contributing.md":
            file = ROOT / "CONTRIBUTING.md"
        if not file.exists():
            problems.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file):
            problems.append(f"{target}: no such heading")
    assert not problems, problems


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_modules_that_a_page_names_are_there(page: Path) -> None:
    text = text_of(page)
    problems = [
        path
        for path in re.findall(r"\b(?:src|tests|studies|docs|configs)/[\w./-]+\.(?:py|md|yaml|png|ipynb)", text)
        if not (ROOT / path).exists()
    ]
    problems += [name for name in set(re.findall(r"`(fewstep(?:\.\w+)+)", text)) if not importable(name)]
    assert not problems


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        with suppress(ModuleNotFoundError):
            found: Any = importlib.import_module(".".join(parts[:count]))
            break
    for part in parts[count:]:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_pages_that_code_refers_to_are_there() -> None:
    problems = []
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml"), *(ROOT / "studies").glob("*.py")]
    for file in [*files, ROOT / "SECURITY.md", ROOT / "Makefile"]:
        named = re.findall(r"docs/[\w/-]+\.md", text_of(file))
        problems += [f"{name_of(file)}: {path}" for path in named if not (ROOT / path).exists()]
    assert not problems


def test_the_readme_is_short_and_its_python_runs_up_to_the_model() -> None:
    text = text_of(ROOT / "README.md")
    assert len(text.splitlines()) <= MAX_README_LINES
    generation, measurement = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(generation, "README.md", "exec")
    exec(compile(measurement, "README.md", "exec"), {})


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.*)"$', text_of(ROOT / "pyproject.toml"), re.MULTILINE)
    newest = re.search(r"^## \[(.*?)\]", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert version is not None and newest is not None and newest.group(1) in (version.group(1), "Unreleased")


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r": ([\w/-]+\.(?:md|ipynb))$|- ([\w/-]+\.md)$", text_of(ROOT / "mkdocs.yml"), re.MULTILINE))
    names = {name for pair in listed for name in pair if name}
    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    there.add("notebooks/quickstart.ipynb")
    assert {name for name in names if not name.startswith("reference/api/")} == there


@pytest.mark.parametrize("script", sorted((ROOT / "studies").glob("*.py")), ids=lambda file: file.name)
def test_a_study_explains_itself_finds_its_imports_and_all_stay_within_their_lines(script: Path) -> None:
    assert sum(len(text_of(file).splitlines()) for file in script.parent.glob("*.py")) <= 2100
    tree = ast.parse(text_of(script))
    assert ast.get_docstring(tree)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "fewstep" in str(node.module)]
    names = [(str(node.module), each.name) for node in nodes for each in node.names]
    assert not [name for module, name in names if not hasattr(importlib.import_module(module), name)]


def test_the_pictures_of_the_concepts_are_made_by_their_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "studies")
    pictures = importlib.import_module("pictures")
    named = {file for page in PAGES for file in re.findall(r"studies/pictures\.py (\w+)`", text_of(page))}
    assert named == set(pictures.PICTURES)
    assert {file.stem for file in (ROOT / "docs" / "img").glob("*.png")} >= named
    assert len(pictures.readouts_picture().axes) == 2


def test_the_notebook_was_run_and_is_small() -> None:
    file = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
    cells = [cell for cell in json.loads(text_of(file))["cells"] if cell["cell_type"] == "code"]
    assert file.stat().st_size < 100_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    assert {"stream", "display_data"} <= {output["output_type"] for cell in cells for output in cell["outputs"]}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    scope: dict[str, Any] = {}
    for cell in json.loads(text_of(ROOT / "docs" / "notebooks" / "quickstart.ipynb"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
    assert set(scope["shares"]) == {0.0, 1.0, "ancestral"}
    assert all(values[-1] == 1 for values in scope["shares"].values())
