"""From a source to packed blocks: on disk, or with a train split that is streamed."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep import __version__
from fewstep.data.cache import cached_folder
from fewstep.data.packing import BATCH_BYTES, PackingReport, SplitReport, pack_split, rows_at_once, write_arrow
from fewstep.data.settings import CorpusSettings
from fewstep.data.sources import SPLITS, Source, open_source
from fewstep.data.stream import BlockStream, text_digest
from fewstep.data.tokenizer import (
    DocumentEncoder,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)
from fewstep.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

_FORMAT = 2
"""Raise it when the files of a prepared corpus change their meaning."""
FIRST_DOCUMENTS, FIRST_CHARACTERS = 20_000, 1 << 26
"""What a stream's validation split and tokenizer are taken from: at most so many documents, with about so much text."""
_WARN_UNKNOWN, _REFUSE_UNKNOWN = 0.01, 0.5


@dataclass(frozen=True)
class PreparedCorpus:
    """Packed blocks on disk, memory-mapped.

    ``train`` and ``validation`` have the columns ``index`` (row number), ``input_ids`` (L), ``length`` (real tokens,
    at most L) and ``num_bytes`` (UTF-8 bytes of text that the real tokens stand for; an end-of-text stands for none).
    Rows come as numpy values. ``folder`` holds it all.
    """

    train: "Dataset"
    validation: "Dataset"
    tokenizer: "PreTrainedTokenizerFast"
    report: PackingReport
    folder: Path

    @property
    def fingerprint(self) -> str:
        """Hash of settings, source and versions: equal fingerprints, equal blocks."""
        return self.folder.name


@dataclass(frozen=True)
class StreamingCorpus:
    """``train`` packs while it reads; ``validation``, held out of the first documents, is on disk, memory-mapped."""

    train: BlockStream
    validation: "Dataset"
    tokenizer: "PreTrainedTokenizerFast"
    report: PackingReport
    folder: Path


def prepare_corpus(settings: CorpusSettings) -> PreparedCorpus:
    """The corpus that ``settings`` describe, from ``cache_dir`` if it was prepared before, else prepared now.

    Raises ``UserError`` for a bad source, tokenizer or setting.
    """
    if settings.streaming:
        raise UserError("streaming is on: a corpus is prepared on disk with streaming off, see streaming_corpus")
    folder, tokenizer, report, validation = _prepared(settings, open_source(settings))
    return PreparedCorpus(_read_blocks(folder / "train.arrow"), validation, tokenizer, report, folder)


def streaming_corpus(settings: CorpusSettings, rank: int = 0, world_size: int = 1) -> StreamingCorpus:
    """A corpus whose train split is never stored, for sources larger than the disk; ``world_size`` ranks share it.

    The validation split is held out of the first documents (at most 20,000, or 64 million characters) as
    :func:`prepare_corpus` would, and the tokenizer is trained on the others of them; both are prepared once and kept in
    ``cache_dir``. Raises ``UserError`` like it.
    """
    if not settings.streaming:
        raise UserError("streaming is off: set streaming to true, or use prepare_corpus")
    source = open_source(settings)
    folder, tokenizer, report, validation = _prepared(settings, source)
    held_out = frozenset(json.loads((folder / "held_out.json").read_text()))
    train = BlockStream(source, tokenizer, settings, held_out, rank, world_size)
    return StreamingCorpus(train, validation, tokenizer, report, folder)


def _prepared(
    settings: CorpusSettings, source: Source
) -> tuple[Path, "PreTrainedTokenizerFast", PackingReport, "Dataset"]:
    tokenizer = None if settings.tokenizer is None else load_tokenizer(settings.tokenizer)
    key = corpus_key(settings, source.fingerprint, tokenizer)
    folder = cached_folder(
        settings.cache_folder, key, _is_whole, lambda empty: build_corpus(settings, source, tokenizer, empty)
    )
    report = PackingReport.from_dict(json.loads((folder / "report.json").read_text())["report"])
    return folder, load_tokenizer(folder / "tokenizer"), report, _read_blocks(folder / "validation.arrow")


def corpus_key(settings: CorpusSettings, source_fingerprint: str, tokenizer: "PreTrainedTokenizerFast | None") -> str:
    """Hash (24 hex digits) of all that decides the blocks: settings, source, tokenizer, versions."""
    fields = asdict(settings)
    # The place of the cache and the names of tokenizer and source do not matter, their contents do.
    del fields["cache_dir"]
    if tokenizer is not None:
        fields["tokenizer"] = tokenizer_fingerprint(tokenizer)
        fields["special"] = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        del fields["vocab_size"]
    versions = [_FORMAT, __version__, version("datasets"), version("tokenizers")]
    text = json.dumps([fields, source_fingerprint, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def build_corpus(
    settings: CorpusSettings, source: Source, tokenizer: "PreTrainedTokenizerFast | None", folder: Path
) -> None:
    """Write validation.arrow, tokenizer/, report.json, and train.arrow or a stream's held_out.json into ``folder``.

    Raises ``UserError`` for no documents, a split that is too short, and text that the tokenizer loses.
    """
    records = _first(source.records) if settings.streaming else source.records
    scratch = folder / "scratch"
    scratch.mkdir()
    split = split_documents(write_documents(records, scratch / "documents.arrow"), settings)
    if tokenizer is None:
        texts = (text for batch in split.train.iter(rows_at_once(split.train)) for text in batch["text"])
        tokenizer = train_tokenizer(texts, settings.vocab_size)
    parts = {"validation": split.validation}
    if settings.streaming:
        digests = [text_digest(text) for batch in split.validation.iter(100) for text in batch["text"]]
        (folder / "held_out.json").write_text(json.dumps(digests))
    else:
        parts["train"] = split.train
    reports = {
        name: pack_split(documents, tokenizer, settings.block_size, settings.pack, folder / f"{name}.arrow")
        for name, documents in parts.items()
    }
    check_splits(reports, settings)
    tokenizer.save_pretrained(folder / "tokenizer")
    first = next(split.validation.iter(rows_at_once(split.validation)))["text"]
    known = not any(report.unknown_share for report in reports.values())
    report = PackingReport(
        source=settings.source,
        block_size=settings.block_size,
        vocabulary=vocabulary_size(tokenizer),
        is_lossless=known and DocumentEncoder(tokenizer).is_lossless(first),
        train=reports.get("train"),
        validation=reports["validation"],
        empty_documents=split.empty_documents,
        duplicate_documents=split.duplicate_documents,
        notes=(*source.notes, *split.notes, *unknown_text_notes(reports, settings)),
    )
    shutil.rmtree(scratch)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.arrow"))}
    (folder / "report.json").write_text(json.dumps({"report": report.to_dict(), "bytes": sizes}, indent=2))


def _first(records: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The first documents of a stream."""
    size = 0
    for record in islice(records, FIRST_DOCUMENTS):
        yield record
        size += len(record["text"])
        if size >= FIRST_CHARACTERS:
            return


def check_splits(reports: dict[str, SplitReport], settings: CorpusSettings) -> None:
    """Raise ``UserError`` for a split without a block, and for more text held out than trained on, unless asked for."""
    for name, split in reports.items():
        if split.blocks == 0:
            raise UserError(
                f"the {name} split of {settings.source} has {split.tokens} tokens, fewer than one block of "
                f"{settings.block_size}: give more text, a smaller block_size, or another validation_fraction"
            )
    if "train" in reports and settings.validation_fraction < 0.5:
        train, validation = reports["train"].tokens, reports["validation"].tokens
        if validation > train:
            raise UserError(
                f"the validation split of {settings.source} would hold {validation:,} tokens and the train split "
                f"{train:,}: split its long documents into several, in .txt files by <|endoftext|>"
            )


def unknown_text_notes(reports: dict[str, SplitReport], settings: CorpusSettings) -> Iterator[str]:
    """What the tokenizer loses, past 1 % as a warning. Raises ``UserError`` past half of the text."""
    worst = max(reports.values(), key=lambda split: split.unknown_share)
    note = (
        f"the tokenizer does not know {worst.unknown_share:.1%} of the text ({worst.unknown_tokens:,} unknown tokens "
        f"of {worst.tokens:,}; {worst.lost_bytes:,} bytes lost of {worst.bytes:,})"
    )
    if worst.unknown_share > _REFUSE_UNKNOWN:
        raise UserError(f"{note}: choose another tokenizer, or leave it out to train one on {settings.source}")
    if worst.unknown_share:
        yield f"WARNING: {note}" if worst.unknown_share > _WARN_UNKNOWN else note


def write_documents(records: Iterable[dict[str, str]], path: Path) -> "Dataset":
    """Records to an arrow file with the columns ``text`` and ``split``, empty for a record without one."""
    import pyarrow as pa

    def tables() -> Iterator["pa.Table"]:
        schema, batch, size = pa.schema([("text", pa.large_string()), ("split", pa.string())]), [], 0
        for record in records:
            batch.append({"split": "", **record})
            size += len(record["text"])
            if size > BATCH_BYTES or len(batch) == 1000:
                yield pa.Table.from_pylist(batch, schema)
                batch, size = [], 0
        yield pa.Table.from_pylist(batch, schema)

    return write_arrow(tables(), path)


@dataclass(frozen=True)
class DocumentSplit:
    """Documents of both sides (column ``text``), and what was left out."""

    train: "Dataset"
    validation: "Dataset"
    empty_documents: int
    duplicate_documents: int
    notes: tuple[str, ...]


def split_documents(documents: "Dataset", settings: CorpusSettings) -> DocumentSplit:
    """Hold out every k-th document, after empty ones and repetitions of earlier ones are left out.

    If the source gives splits, these are used. A single document is cut: its tail is held out. Raises ``UserError``
    for no document with text, and for an empty side.
    """
    digests, sides = np.zeros(len(documents), np.uint64), np.zeros(len(documents), np.int8)
    filled = np.zeros(len(documents), bool)
    row = replaced = 0
    for batch in documents.iter(rows_at_once(documents)):
        for text, side in zip(batch["text"], batch["split"], strict=True):
            filled[row], digests[row] = bool(text), text_digest(text)
            sides[row] = ("", *SPLITS).index(side)
            replaced += text.count("\ufffd")
            row += 1
    rows = np.flatnonzero(filled)
    if not len(rows):
        raise UserError(f"source {settings.source} holds no documents with text: {len(documents)} read, all empty")
    _, first = np.unique(digests[rows], return_index=True)
    used = rows[np.sort(first)]
    notes = [f"{replaced:,} characters are U+FFFD, which stands for what is not valid Unicode"] if replaced else []
    if len(used) == 1:
        train, validation = _cut_single(documents[int(used[0])]["text"], settings)
        notes.append(f"one document only: its last {settings.validation_fraction:.0%} is the validation split")
    else:
        given = sides[used]
        held_out = given == 2 if given.any() else validation_rows(len(used), settings.validation_fraction)
        if held_out.all() or not held_out.any():
            empty = "train" if held_out.all() else "validation"
            raise UserError(f"source {settings.source} gives no documents of the {empty} split: let it give both")
        train, validation = documents.select(used[~held_out]), documents.select(used[held_out])
    if settings.streaming:
        notes.append(f"{len(validation):,} of the first {len(documents):,} documents are the validation split")
    return DocumentSplit(train, validation, len(documents) - len(rows), len(rows) - len(used), tuple(notes))


def validation_rows(count: int, fraction: float) -> np.ndarray:
    """Which of ``count`` documents, 2 or more, are held out: evenly spread, at least one on each side. Bool (count,).

    Document i is held out where floor((i + 1) fraction) exceeds floor(i fraction), so about every (1/fraction)-th.
    """
    held_out = np.diff(np.floor(np.arange(count + 1) * fraction)) > 0
    if not held_out.any():
        held_out[-1] = True
    if held_out.all():
        held_out[0] = False
    return held_out


def _cut_single(text: str, settings: CorpusSettings) -> tuple["Dataset", "Dataset"]:
    from datasets import Dataset

    if settings.streaming:
        raise UserError(f"source {settings.source} is one document, which cannot be streamed: turn streaming off")
    place = math.floor(len(text) * (1 - settings.validation_fraction))
    while place > 0 and not text[place].isspace():
        place -= 1
    train, validation = (Dataset.from_dict({"text": [part.strip()]}) for part in (text[:place], text[place:]))
    return train, validation


def _is_whole(folder: Path) -> bool:
    """Whether ``folder`` is a finished corpus whose files have the sizes that its report states."""
    try:
        sizes = json.loads((folder / "report.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _read_blocks(path: Path) -> "Dataset":
    """A packed split, memory-mapped, its rows as numpy values."""
    from datasets import Dataset

    return Dataset.from_file(str(path)).with_format("numpy")
