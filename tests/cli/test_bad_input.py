"""Bad input of any kind ends in exit 2 and one line on stderr; no file is written, changed or deleted."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.cli.main import main
from fewstep.data.corpus import prepare_corpus
from fewstep.data.sources import CorpusSettings
from tests.bundles import tiny_bundle, with_identity
from tests.cli import bad_inputs
from tests.cli.bad_inputs import Case, write_files
from tests.lab.adapters import bad_adapters
from tests.lab.adapters.bad_adapters import write_others
from tests.lab.adapters.folders import write
from tests.lab.report import bad_reports
from tests.lab.report.bad_reports import write_runs
from tests.runs import BLOCK_SIZE, CONFIGS, write_text

CASES = [*bad_inputs.CASES, *bad_reports.CASES, *bad_adapters.CASES]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with its cache, a model on it, and one of transformers."""
    folder = tmp_path_factory.mktemp("shop")
    source = write_text(folder / "text.jsonl")
    with_identity(tiny_bundle(), source=str(source)).save_pretrained(folder / "model")
    text = CorpusSettings(source=str(source), block_size=BLOCK_SIZE, cache_dir=str(folder / "cache"))
    own = replace(text, tokenizer=str(folder / "model" / "tokenizer"))
    for settings in (own, replace(text, vocab_size=300, max_documents=40)):  # packed before: nothing is shown of it
        prepare_corpus(settings)
    write(folder / "gpt2", "gpt2")
    return folder


@pytest.fixture(scope="module")
def place(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bad files of all cases. No case writes, so all share it."""
    folder = tmp_path_factory.mktemp("place")
    write_files(folder, shop / "model")
    write_runs(folder)
    write_others(folder, shop / "gpt2")
    return folder


def words(command: str, shop: Path) -> list[str]:
    """The command line, its placeholders filled in and its escapes read."""
    data = f"--data.source={shop / 'text.jsonl'} --data.cache_dir={shop / 'cache'} --data.block_size={BLOCK_SIZE} "
    data += "--data.vocab_size=300 --data.batch_size=4 --data.max_documents=40"
    places = {"model": shop / "model", "gpt2": shop / "gpt2", "text": shop / "text.jsonl", "cache": shop / "cache"}
    places |= {"configs": CONFIGS, "data": data}
    return [word.encode().decode("unicode_escape") for word in shlex.split(command.format(**places))]


def listing(folder: Path) -> dict[str, int]:
    """Everything below a folder, with sizes."""
    files = (path for path in folder.rglob("*") if not path.name.endswith(".lock"))  # those stay
    return {str(path.relative_to(folder)): path.lstat().st_size for path in files}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[-60:])
def test_it_is_one_line_with_the_value_and_the_remedy(
    case: Case,
    shop: Path,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    before = listing(shop), listing(place)
    code = main(words(case.command, shop))
    out, err = capfd.readouterr()
    assert code == 2, err
    # The progress of packing, where a text is only found to be bad while it is packed, stands above the error.
    (line,) = (line for line in err.replace("\r", "\n").splitlines() if line and not line.startswith("packing "))
    assert line.startswith("fewstep: error: ") and line.isprintable()
    assert case.value in line and case.advice in line
    assert not out
    assert (listing(shop), listing(place)) == before
