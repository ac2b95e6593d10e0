"""House rules that a machine can hold (CONTRIBUTING.md tells them), and what the edge promises to a user."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fewstep
from fewstep.cli import edge
from fewstep.cli.main import COMMANDS, main
from fewstep.errors import UserError

PACKAGE = Path(__file__).parents[1] / "src" / "fewstep"
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
GLOBAL_SEEDS = {
    "torch.manual_seed",
    "manual_seed",
    "torch.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
}
GLOBAL_SEEDS |= {"random.seed", "np.random.seed", "numpy.random.seed"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_definitions(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions of a module and public methods of those classes, calling conventions included."""
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            methods = (child for child in node.body if isinstance(child, Function))
            yield from (m for m in methods if not m.name.startswith("_") or m.name in ("__init__", "__call__"))


def long_files(source: str) -> Iterator[str]:
    """No file over 300 lines."""
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        yield f"{lines} lines in a file; {MAX_FILE_LINES} are allowed"


def long_functions(source: str) -> Iterator[str]:
    """No function over 60 lines, its docstring counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
            yield f"line {node.lineno}: {node.name} has {lines} lines; {MAX_FUNCTION_LINES} are allowed"


def open_signatures(source: str) -> Iterator[str]:
    """No **kwargs in a public signature: a mistyped name must fail where it is written."""
    for node in public_definitions(ast.parse(source)):
        if isinstance(node, Function) and node.args.kwarg:
            yield f"line {node.lineno}: {node.name} takes **{node.args.kwarg.arg}; name its arguments"


def missing_docstrings(source: str) -> Iterator[str]:
    """Every public class, function and method says what it is; a constructor is told by its class."""
    for node in public_definitions(ast.parse(source)):
        if not node.name.startswith("__") and not ast.get_docstring(node):
            yield f"line {node.lineno}: {node.name} has no docstring"


def leftovers(source: str) -> Iterator[str]:
    """No notes to self: what is left to do stands in an issue."""
    for number, line in enumerate(source.splitlines(), 1):
        if re.search(r"\b(TODO|FIXME)\b", line):
            yield f"line {number}: {line.strip()}"


def calls(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every call whose callee is a plain name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def prints(source: str) -> Iterator[str]:
    """Only the command line prints."""
    yield from (f"line {line}: print(...) outside cli/" for line, name in calls(source) if name == "print")


def global_seeding(source: str) -> Iterator[str]:
    """Randomness comes from a generator that the caller passes."""
    for line, name in calls(source):
        if name in GLOBAL_SEEDS:
            yield f"line {line}: {name}(...) seeds the whole process; take a torch.Generator instead"


RULES = [long_files, long_functions, open_signatures, missing_docstrings, leftovers, prints, global_seeding]
Rule = Callable[[str], Iterator[str]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    files = [file.relative_to(PACKAGE) for file in sorted(PACKAGE.rglob("*.py"))]
    if rule is prints:
        files = [file for file in files if file.parts[0] != "cli"]
    assert files
    found = [f"{file}: {text}" for file in files for text in rule((PACKAGE / file).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "broken", "kept"),
    [
        (long_files, "x = 1\n" * 301, "x = 1\n" * 300),
        (long_functions, "def f():\n" + "    x = 1\n" * 60, "def f():\n" + "    x = 1\n" * 59),
        (long_functions, "class A:\n def f():\n" + "    x = 1\n" * 60, "class A:\n" + "    x = 1\n" * 60),
        (open_signatures, "def f(**extras): ...", "def _f(**extras): ..."),
        (open_signatures, "class A:\n def __init__(self, **kwargs): ...", "class A:\n def _f(self, **kwargs): ..."),
        (missing_docstrings, "def f(): ...", "def f():\n 'Says it.'"),
        (missing_docstrings, "class A: ...", "class _A: ..."),
        (missing_docstrings, "class A:\n 'Says it.'\n def f(self): ...", "class A:\n 'It.'\n def __init__(self): ..."),
        (leftovers, "x = 1  # TODO: later", "x = 1  # later"),
        (prints, "def f():\n print(1)", "def f():\n table.print(1)"),
        (global_seeding, "torch.manual_seed(0)", "generator.manual_seed(0)"),
        (global_seeding, "np.random.seed(0)", "torch.Generator().manual_seed(0)"),
    ],
)
def test_a_planted_violation_is_found(rule: Rule, broken: str, kept: str) -> None:
    assert len(list(rule(broken))) == 1
    assert not list(rule(kept))


def test_an_unknown_command_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert "'trian'" in err
    assert all(name in err for name in COMMANDS)


def test_a_user_error_is_one_line_whatever_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: list[str]) -> int:
        raise UserError(f"steps is {argv[0]};\n  expected at least 1")

    assert edge.run(command, ["0"]) == 2
    assert capsys.readouterr().err == "fewstep: error: steps is 0; expected at least 1\n"


def test_an_interrupt_exits_130_and_a_defect_keeps_its_traceback() -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    def defect(argv: list[str]) -> int:
        raise ValueError("ours")

    assert edge.run(interrupted, []) == 130
    with pytest.raises(ValueError, match="ours"):
        edge.run(defect, [])


BROKEN_PIPE = """
import sys
from fewstep.cli.edge import run
def command(argv):
    sys.stdin.readline()
    {body}
    return 0
sys.exit(run(command, []))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_the_command_quietly_but_another_broken_pipe_does_not(unbuffered: str) -> None:
    def exit_and_stderr(body: str, reader_leaves: bool) -> tuple[int, str]:
        child = subprocess.Popen(
            [sys.executable, "-c", BROKEN_PIPE.format(body=body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        if reader_leaves:
            child.stdout.close()
        child.stdin.write("go\n")
        child.stdin.close()
        err = child.stderr.read()
        child.stderr.close()
        code = child.wait(timeout=30)
        child.stdout.close()
        return code, err

    assert exit_and_stderr("print('one line')", reader_leaves=True) == (141, "")
    code, err = exit_and_stderr("raise BrokenPipeError('of a worker')", reader_leaves=False)
    assert code == 1
    assert "of a worker" in err


def test_configs_are_found_in_a_checkout_and_in_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "fewstep"
    package.mkdir(parents=True)
    monkeypatch.setattr(fewstep, "__file__", str(package / "__init__.py"))
    with pytest.raises(UserError, match="no configs folder"):
        edge.configs_folder()
    for folder in (tmp_path / "configs", package / "configs"):  # the package's own comes first where both are
        folder.mkdir()
        assert edge.configs_folder() == folder
