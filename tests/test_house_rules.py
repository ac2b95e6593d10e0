"""The house rules of CONTRIBUTING.md that a machine can check, with their numbers in one place."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fewstep"

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80
MAX_CLASS_LEVELS = 3
SMALL_FILE_LINES = 80

# Protocols that a user's class or function implements, so that one implementation in src is enough.
OUTSIDE_USERS_IMPLEMENT = {
    "FlowLike",
    "LatentEncoder",
    "ReadsCodebook",
    "Readout",
}

MAX_SMALL_FILES = 3  # with one importer, each with its reason; the plan allows 10

FORBIDDEN_WORDS = re.compile(
    r"\b(told|anew|misfits?|strangers?|wanted|bench|suits)\b"
    r"|that are none|where there is|\bone a step|take it away|this project's definition",
    re.IGNORECASE,
)
FORBIDDEN_NAMES = {"told", "made", "found", "one", "wanted", "misfit", "stranger", "way", "bench"}
ENTRY = {"fewstep.__main__"}  # what it alone imports, the installed command starts too
GLOBAL_SEEDS = {
    *("torch.manual_seed", "manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all"),
    *("random.seed", "np.random.seed", "numpy.random.seed"),
}

# Rooms and their lines: (today, aim). Modules that make one room together stand in one line.
BUDGETS = {
    "__init__ errors shapes types registry schedules paths": (659, 600),
    "nn": (462, 450),
    "autoencoders": (530, 180),
    "denoisers": (427, 260),
    "readouts": (711, 540),
    "objectives": (1061, 950),
    "samplers": (705, 690),
    "data": (1464, 950),
    "model storage prompts writing pipeline provenance locking": (1665, 1100),
    "metrics diagnostics": (2001, 1750),
    "training": (2692, 1950),
    "cli settings __main__": (1946, 1300),
    "evaluation": (3516, 2000),
    "lab": (5315, 4000),
}
NOT_CORE = {"evaluation", "lab"}
CORE_LINES = (14_323, 11_000)  # without NOT_CORE
SRC_LINES = (23_154, 15_000)
TEST_SHARE = (0.908, 0.75)  # lines of tests to lines of src


@dataclass(frozen=True)
class Source:
    """A file of the package, read once."""

    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return _parse(self.text)

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def module(self) -> str:
        """Dotted name; of a package's ``__init__.py`` that of the package."""
        return ".".join(["fewstep", *Path(self.name).with_suffix("").parts]).removesuffix(".__init__")

    @property
    def room(self) -> str:
        return Path(self.name).with_suffix("").parts[0]


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def package() -> tuple[Source, ...]:
    """Every file of the package."""
    return tuple(Source(str(file.relative_to(PACKAGE)), file.read_text()) for file in sorted(PACKAGE.rglob("*.py")))


Function = ast.FunctionDef | ast.AsyncFunctionDef
Sources = Iterable[Source]


def public_definitions(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public classes and functions of a module and public methods of those classes, constructors included."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (child for child in node.body if isinstance(child, Function))
                yield from (m for m in methods if not m.name.startswith("_") or m.name in ("__init__", "__call__"))


def calls(source: Source) -> Iterator[tuple[str, str]]:
    """Place and dotted name of every call."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield f"{source.name}:{node.lineno}", ast.unparse(node.func)


def long_files(sources: Sources) -> Iterator[str]:
    """One concept a file."""
    yield from (f"{s.name} has {s.lines} lines" for s in sources if s.lines > MAX_FILE_LINES)


def long_functions(sources: Sources) -> Iterator[str]:
    """One job a function, its docstring counted."""
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, Function) and (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
                yield f"{source.name}:{node.lineno}: {node.name} has {lines} lines"


def open_signatures(sources: Sources) -> Iterator[str]:
    """No **kwargs in a public signature: a mistyped name must fail where it is written."""
    for source in sources:
        for node in public_definitions(source.tree):
            if isinstance(node, Function) and node.args.kwarg:
                yield f"{source.name}:{node.lineno}: {node.name} takes **{node.args.kwarg.arg}"


def missing_docstrings(sources: Sources) -> Iterator[str]:
    """Every public class, function and method says what it is; the class speaks for its constructor.

    A method that overrides one of ours inherits what that says.
    """
    known = classes(sources)
    documented = {
        (name, item.name)
        for name, node in known.items()
        for item in node.body
        if isinstance(item, Function) and ast.get_docstring(item)
    }

    def inherits(name: str, method: str) -> bool:
        return any(
            (base, method) in documented or inherits(base, method)
            for base in bases(known[name])
            if base in known and base != name
        )

    silent = {id(item) for name in known for item in known[name].body if inherits(name, getattr(item, "name", ""))}
    for source in sources:
        for node in public_definitions(source.tree):
            if id(node) not in silent and not node.name.startswith("__") and not ast.get_docstring(node):
                yield f"{source.name}:{node.lineno}: {node.name} has no docstring"


def notes_to_self(sources: Sources) -> Iterator[str]:
    """What is left to do stands in an issue."""
    for source in sources:
        for number, line in enumerate(source.text.splitlines(), 1):
            if re.search(r"\b(TODO|FIXME)\b", line):
                yield f"{source.name}:{number}: {line.strip()}"


def prints(sources: Sources) -> Iterator[str]:
    """Only the command line prints: cli/, and the files command.py."""
    for source in sources:
        if source.room != "cli" and not source.name.endswith("command.py"):
            yield from (f"{place}: print" for place, name in calls(source) if name == "print")


def global_seeding(sources: Sources) -> Iterator[str]:
    """Randomness comes from a generator that the caller passes."""
    for source in sources:
        yield from (f"{place}: {name} seeds the whole process" for place, name in calls(source) if name in GLOBAL_SEEDS)


def importers(sources: Sources) -> dict[str, set[str]]:
    """Modules that import each module, its package's ``__init__`` among them."""
    names = {source.module for source in sources}
    result: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        package_name = source.module if source.name.endswith("__init__.py") else source.module.rpartition(".")[0]
        for node in ast.walk(source.tree):
            imported: list[str] = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package_name.split(".")[: len(package_name.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                imported = [name if (name := f"{base}.{a.name}") in names else base for a in node.names]
            for name in names.intersection(imported) - {source.module}:
                result[name].add(source.module)
    return result


def small_files(sources: Sources) -> Iterator[str]:
    """A small file with a single importer belongs into that importer."""
    used_by = importers(sources)
    for source in sources:
        if (
            source.lines < SMALL_FILE_LINES
            and len(used_by[source.module] - ENTRY) == 1
            and "__init__" not in source.name
        ):
            yield f"{source.name} has {source.lines} lines and one importer, {', '.join(used_by[source.module])}"


def small_files_without_a_reason(sources: Sources) -> Iterator[str]:
    """One that stands alone all the same says why in the first line of its docstring: "..., apart because ..."."""
    sources = list(sources)
    first_lines = {s.name: (ast.get_docstring(s.tree) or "").partition("\n")[0] for s in sources}
    for problem in small_files(sources):
        if not re.search(r"\b(because|so that)\b", first_lines[problem.split()[0]]):
            yield problem


def classes(sources: Sources) -> dict[str, ast.ClassDef]:
    """Classes of the package by name."""
    return {node.name: node for s in sources for node in ast.walk(s.tree) if isinstance(node, ast.ClassDef)}


def bases(node: ast.ClassDef) -> list[str]:
    """Bare names of the bases, without type arguments."""
    return [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]


def deep_classes(sources: Sources) -> Iterator[str]:
    """At most three classes of ours above one another."""
    known = classes(sources)

    def levels(name: str) -> int:
        return 1 + max((levels(base) for base in bases(known[name]) if base in known and base != name), default=0)

    yield from (f"{name} is {levels(name)} levels deep" for name in known if levels(name) > MAX_CLASS_LEVELS)


def members(node: ast.ClassDef) -> set[str]:
    """What a class or its instances have: fields and attributes by name, methods with the names of their arguments."""
    names = set()
    for child in ast.walk(node):
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            names.add(child.target.id)
        elif isinstance(child, ast.Assign):
            names |= {target.id for target in child.targets if isinstance(target, ast.Name)}
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
            names.add(child.attr)
    for child in node.body:
        if isinstance(child, Function):
            is_property = any(ast.unparse(decorator).endswith("property") for decorator in child.decorator_list)
            arguments = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs][1:]
            names |= {child.name if is_property else f"{child.name}({argument.arg})" for argument in arguments}
            names.add(child.name)
    return {name for name in names if not name.startswith("_")}


def lonely_protocols(sources: Sources) -> Iterator[str]:
    """A Protocol has two implementations, or is what a user outside implements.

    One of ``__call__`` alone is the signature of a function, and counts as such.
    """
    known = classes(sources)

    def all_members(name: str) -> set[str]:
        own = members(known[name])
        return own.union(*(all_members(base) for base in bases(known[name]) if base in known and base != name))

    protocols = {name for name, node in known.items() if "Protocol" in bases(node)}
    for protocol in protocols - OUTSIDE_USERS_IMPLEMENT:
        asked = all_members(protocol)
        count = sum(asked <= all_members(name) for name in known.keys() - protocols)
        if asked and count < 2:
            yield f"{protocol} has {count} implementations"


def forbidden_words(sources: Sources) -> Iterator[str]:
    """Docstrings, comments and messages use the field's words."""
    for source in sources:
        for number, line in enumerate(source.text.splitlines(), 1):
            for word in FORBIDDEN_WORDS.finditer(line):
                yield f"{source.name}:{number}: {word.group()}"


def forbidden_names(sources: Sources) -> Iterator[str]:
    """Variables, arguments and functions are named after what they hold."""
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            elif isinstance(node, Function):
                name = node.name
            else:
                continue
            if name.strip("_") in FORBIDDEN_NAMES:
                yield f"{source.name}:{node.lineno}: {name}"


Rule = Callable[[Sources], Iterator[str]]
RULES: dict[str, tuple[Rule, str]] = {
    "long files": (long_files, "x = 1\n" * 451),
    "long functions": (long_functions, "def f():\n" + "    x = 1\n" * 80),
    "open signatures": (open_signatures, "class A:\n def __init__(self, **kwargs): ..."),
    "missing docstrings": (missing_docstrings, "class A:\n 'Says it.'\n def f(self): ..."),
    "notes to self": (notes_to_self, "x = 1  # TODO: later"),
    "prints": (prints, "def f():\n print(1)"),
    "global seeds": (global_seeding, "torch.manual_seed(0)"),
    "small files with one importer": (small_files, "'Small.'"),
    "small files without a reason": (small_files_without_a_reason, "'Small.'"),
    "too many class levels": (deep_classes, "class A: ...\nclass B(A): ...\nclass C(B): ...\nclass D(C): ..."),
    "protocols with one implementation": (lonely_protocols, "class A(Protocol):\n def f(self): ...\nclass B(A): ..."),
    "forbidden words": (forbidden_words, "'Make it anew.'"),
    "forbidden names": (forbidden_names, "found = 1"),
}
"""Rule and a file that breaks it once."""


@pytest.mark.parametrize("name", RULES)
def test_the_package_keeps_the_rule(name: str) -> None:
    rule, _ = RULES[name]
    allowed = MAX_SMALL_FILES if rule is small_files else 0
    problems = list(rule(package()))
    listed = "\n".join(problems if len(problems) < 60 else [f"{len(problems)} times:", *by_file(problems)])
    assert len(problems) <= allowed, f"{name}: {len(problems)}, at most {allowed}\n{listed}"


def by_file(problems: list[str]) -> list[str]:
    """How many problems each file has."""
    return [f"{count:5} {name}" for name, count in Counter(re.split(r"[: ]", p)[0] for p in problems).most_common()]


@pytest.mark.parametrize("name", RULES)
def test_a_planted_violation_fails(name: str) -> None:
    rule, broken = RULES[name]
    importer = Source("odd/user.py", "from fewstep.odd import planted")
    assert len(list(rule([Source("odd/planted.py", broken), importer]))) == 1


def rooms() -> dict[str, int]:
    """Lines of each room: a folder of the package, or a module at its top."""
    lines: Counter[str] = Counter()
    for source in package():
        lines[source.room] += source.lines
    return dict(lines)


def test_every_room_stays_within_its_lines() -> None:
    lines = rooms()
    budgeted = [room for names in BUDGETS for room in names.split()]
    assert set(lines) <= set(budgeted), f"{set(lines) - set(budgeted)}: give these a budget"
    over = []
    for names, (today, aim) in BUDGETS.items():
        total = sum(lines.get(room, 0) for room in names.split())
        if total > today:
            over.append(f"{names}: {total} lines, at most {today} (aim: {aim})")
    assert not over, "\n".join([*over, "take a concept out, or say in the commit that raises the number why it grows"])


def test_the_core_the_whole_and_its_tests_stay_within_their_lines() -> None:
    lines = rooms()
    assert sum(lines.values()) <= SRC_LINES[0]
    assert sum(count for room, count in lines.items() if room not in NOT_CORE) <= CORE_LINES[0]
    tests = sum(len(file.read_text().splitlines()) for file in (ROOT / "tests").rglob("*.py"))
    assert tests / sum(lines.values()) <= TEST_SHARE[0]
