"""Run what README and docs show, at debug size, and compare numbers that can be had in seconds: ``make docs-check``.

    python studies/docs_check.py                    # half an hour on two cores, in a temporary folder
    python studies/docs_check.py --only evaluate,numbers
    python studies/docs_check.py --list             # what would be run

Every command line of ``fewstep`` in a code block is run in one folder, in the order of the pages, at debug size: runs
are those of ``fewstep quickstart --size debug``, sweeps have few samples. Lines that need what is not here (a GPU, a
cluster, a hub model, a file of the reader's) are listed as left out. Then every study makes its trial run.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIRST = ("README.md", "start/", "sharpness.md")
"""Pages whose commands make what others need."""
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: (next((i for i, part in enumerate(FIRST) if part in str(page)), len(FIRST)), str(page)),
)
NOT_HERE = (
    r"\.\.\.|my_|texts/|notes|photos/|all-MiniLM|SmolLM2|smollm2|Continuous-Rivals|runs/ae16|runs/mine|diagnosis-bart|owner/|\.ckpt"
    r"|blocks=documents|runs/grammar|runs/prompts|runs/student|runs/12|runs/1/|pairs\.jsonl|bert-base"
    r"|--device cuda|--size base|--size hour|devices=|\$|\b[A-Z]{3,}\b|--wandb|--mauve|--help"
)
"""Such a line needs what only the reader has; the tests compare its options with the parser."""
SMALLER = {
    "quickstart": "--size debug --num_samples 8",
    "train": "--size debug --diagnostics.every_n_validations=0",
    "evaluate": "--samples 4 --seeds 1 --max_documents 40 --cci_examples 0",
    "diagnose": "--examples 4 --positions 1 --overwrite",
    "compare": "--budget 30 --teacher_steps 3 --size debug --samples 4 --seeds 1",
    "report": "--traces 1 --overwrite",
    "theory": "--effort 0.02 --max_modes 1024 --overwrite",
}
"""Options put behind those of the page."""
TRIALS = (
    "pictures.py --out pictures",
    "speed.py objectives --quick --repeats 1",
    "grammar.py --size debug --source grammar:15 --samples 4 --seeds 1 --steps 1,2 --out grammar",
    "latents.py --size debug --seeds 1 --samples 4 --source sotu --only transformer --out latents",
    "accelerator.py --minutes 0.5 --size debug --source sotu --out accelerator",
    "decoders.py --train_steps 10 --examples 2 --out decoders",
)


def code_lines(page: Path) -> Iterator[str]:
    """Lines of shell in fenced and indented blocks of a page, with continuation lines joined."""
    text = re.sub(r"```(?!bash)\w+\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"\\\n\s*", " ", text)
    fenced = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    indented = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    yield from (line.strip() for line in f"{fenced}\n{indented}".splitlines() if line.strip())


def words_of(line: str) -> list[str]:
    """The words of a command of fewstep behind its name, without comment; none where the line is no such command."""
    start = re.search(r"(?:^|\s|/)(fewstep|train\.py) (?=[a-z])", line)
    if start is None:
        return []
    words = shlex.split(line[start.end() :], comments=True)
    words = words[: next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))]
    return ["train", *words] if start.group(1) == "train.py" else words


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line once: where it is, and its words at debug size; no words for one that is left out."""
    seen = set()
    for page in PAGES:
        for line in code_lines(page):
            if not (words := words_of(line)) or shlex.join(words) in seen:
                continue
            seen.add(shlex.join(words))
            left_out = re.search(NOT_HERE, shlex.join(words)) or "torchrun" in line
            yield f"{page.relative_to(ROOT)}: fewstep {shlex.join(words)}", [] if left_out else smaller(words)


def smaller(words: list[str]) -> list[str]:
    """The same command on the debug run, with few samples."""
    name, *rest = [
        word.replace("runs/hour", "runs/quickstart").replace("runs/debug", "runs/quickstart") for word in words
    ]
    more = SMALLER.get(name, "").split()
    if name == "theory" and "--latents" in rest:
        more = ["--num_latents", "64", "--samples", "4"]
    if name == "train":
        rest = [word for word in rest if word not in ("--size", "base")]
    if name == "diagnose" and ("digits" in shlex.join(rest) or "shapes" in shlex.join(rest)):
        more = ["--examples", "4", "--overwrite"]
    elif name == "diagnose":  # a protocol decides how many examples there are
        more = (["--overwrite"] if "--protocol" in rest else more) + ["--max_documents", "40"]
    if name == "compare" and "--contrast" in rest:
        more = []
    return [name, *rest, *more]


def run(words: list[str], folder: Path) -> tuple[bool, float, str]:
    """Whether a command ended well, its seconds, and the end of what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    said = (done.stderr or done.stdout).strip()
    return done.returncode == 0, time.perf_counter() - start, said[-600:]


def check_numbers() -> list[str]:
    """The table of docs/findings/consistency.md, every figure of which follows from the rule, to its last digit."""
    from fewstep.lab.theory.consistency import sample_spread
    from fewstep.paths import linear_path

    page = (ROOT / "docs" / "findings" / "consistency.md").read_text(encoding="utf-8")
    columns = (4, 8, 64, 256, 16384)
    problems = []
    row = r"^\| ([\w:.]+(?:,[\d.]+)*)[^|*]*" + r"\| ([\d.]+) " * len(columns)
    for rule, *cells in re.findall(row, page, re.MULTILINE):
        for count, cell in zip(columns, cells, strict=True):
            if abs((value := sample_spread(rule, linear_path(), count)) - float(cell)) > 0.00051:
                problems.append(f"{rule}, N = {count}: the page has {cell}, the closed form {value:.4f}")
    return problems


def jobs_of(only: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Name and arguments of Python of everything to run; prints what is left out."""
    yield (
        "first of all",
        ["-m", "fewstep", "quickstart", "--size", "debug", "--num_samples", "8", "--out", "runs/quickstart"],
    )
    for name, words in commands():
        if not words:
            print(f"left out  {name}")
        elif not only or words[0] in only:
            yield name, ["-m", "fewstep", *words]
    for line in TRIALS:
        script, *words = line.split()
        if not only or Path(script).stem in only:
            yield f"studies/{line}", [str(ROOT / "studies" / script), *words]


def main() -> int:
    """Run everything; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="commands, studies and numbers, with commas between; all if empty")
    parser.add_argument("--list", action="store_true", help="only print what would be run")
    args = parser.parse_args()
    only = set(filter(None, args.only.split(",")))
    jobs = list(jobs_of(only))
    if args.list:
        print("\n".join(f"would run {shlex.join(words)}" for _, words in jobs))
        return 0
    failed = [] if only and "numbers" not in only else check_numbers()
    print("".join(f"FAILED   {problem}\n" for problem in failed), end="")
    with tempfile.TemporaryDirectory() as folder:
        for name, words in jobs:
            well, seconds, said = run(words, Path(folder))
            print(f"{'ok' if well else 'FAILED':8} {seconds:5.0f} s  {name}", flush=True)
            if not well:
                failed.append(name)
                print(f"    ran: {shlex.join(words)}\n    {said}", flush=True)
    print(f"{len(failed)} failed, {len(jobs)} run")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
