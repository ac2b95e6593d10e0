"""From a source to packed blocks on disk: the way that every run's text takes."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep.data.cache import cached_folder
from fewstep.data.packing import pack_split
from fewstep.data.reading import clean_document
from fewstep.data.report import PackingReport, SplitReport
from fewstep.data.settings import CorpusSettings
from fewstep.data.sources import Source, open_source
from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer
from fewstep.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

_FORMAT = 1
"""Raise it when the files of a prepared corpus change their meaning."""


@dataclass(frozen=True)
class PreparedCorpus:
    """Packed blocks on disk, memory-mapped.

    ``train`` and ``validation`` have the columns ``index`` (row number), ``input_ids`` (L), ``length`` (real tokens,
    at most L) and ``num_bytes`` (UTF-8 bytes of text that the real tokens stand for; an end-of-text stands for none).
    Rows come as numpy values. ``folder`` holds it all, and its name is the corpus's fingerprint.
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
class DocumentSplit:
    """Documents of both sides (column ``text``), and what was left out."""

    train: "Dataset"
    validation: "Dataset"
    empty_documents: int
    duplicate_documents: int
    notes: tuple[str, ...] = ()


def corpus_key(settings: CorpusSettings, source_fingerprint: str, tokenizer: "PreTrainedTokenizerFast | None") -> str:
    """Hash (24 hex digits) of all that decides the blocks: settings, source, tokenizer, versions."""
    fields = asdict(settings)
    # Where it is kept and how a tokenizer or source is called do not matter, what they hold does.
    del fields["cache_dir"]
    if tokenizer is not None:
        fields["tokenizer"] = tokenizer_fingerprint(tokenizer)
        fields["special"] = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        del fields["vocab_size"]
    try:
        own = version("fewstep")
    except PackageNotFoundError:
        own = "source"
    versions = [_FORMAT, own, version("datasets"), version("tokenizers")]
    text = json.dumps([fields, source_fingerprint, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def validation_rows(count: int, fraction: float) -> np.ndarray:
    """Which of ``count`` documents are held out: evenly spread, at least one. Bool (count,).

    Document i is held out where floor((i + 1) fraction) exceeds floor(i fraction), so about every (1/fraction)-th.
    """
    steps = np.floor(np.arange(count + 1) * fraction)
    held_out = np.diff(steps) > 0
    if count > 1 and not held_out.any():
        held_out[-1] = True
    if count > 1 and held_out.all():
        held_out[0] = False
    return held_out


def text_digest(text: str) -> int:
    """64 bits of a hash of the words, so that texts that differ in white space only count as the same."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")


def split_documents(documents: "Dataset", fraction: float, source: str) -> DocumentSplit:
    """Hold out every k-th document, after empty ones and repetitions of earlier ones are left out.

    A single document is cut: its tail is held out, and a note says so.

    Raises:
        UserError: no document with text.
    """
    digests, filled = np.zeros(len(documents), np.uint64), np.zeros(len(documents), bool)
    row = 0
    for batch in documents.iter(1000):
        for text in batch["text"]:
            text = clean_document(text)
            filled[row], digests[row] = bool(text), text_digest(text)
            row += 1
    rows = np.flatnonzero(filled)
    if not len(rows):
        raise UserError(f"source {source} holds no documents with text: {len(documents)} read, all empty")
    _, first = np.unique(digests[rows], return_index=True)
    kept = rows[np.sort(first)]
    empty, duplicates = len(documents) - len(rows), len(rows) - len(kept)
    if len(kept) == 1:
        train, validation = _cut_single(clean_document(documents[int(kept[0])]["text"]), fraction)
        note = f"one document only: its last {fraction:.0%} is the validation split"
        return DocumentSplit(train, validation, empty, duplicates, (note,))
    held_out = validation_rows(len(kept), fraction)
    return DocumentSplit(documents.select(kept[~held_out]), documents.select(kept[held_out]), empty, duplicates)


def _cut_single(text: str, fraction: float) -> tuple["Dataset", "Dataset"]:
    from datasets import Dataset

    place = math.floor(len(text) * (1 - fraction))
    while place > 0 and not text[place].isspace():
        place -= 1
    return Dataset.from_dict({"text": [text[:place]]}), Dataset.from_dict({"text": [text[place:]]})


def _check_blocks(split: SplitReport, name: str, settings: CorpusSettings) -> None:
    if split.blocks == 0:
        raise UserError(
            f"the {name} split of {settings.source} has {split.tokens} tokens, fewer than one block of "
            f"{settings.block_size}: give more text, a smaller block_size, or another validation_fraction"
        )


def build_corpus(
    settings: CorpusSettings, source: Source, tokenizer: "PreTrainedTokenizerFast | None", folder: Path
) -> None:
    """Write train.arrow, validation.arrow, tokenizer/ and report.json into ``folder``.

    Raises:
        UserError: unreadable source, no documents, or a split shorter than one block.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    split = split_documents(
        source.documents(scratch, settings.max_documents), settings.validation_fraction, settings.source
    )
    if tokenizer is None:
        texts = (clean_document(text) for batch in split.train.iter(1000) for text in batch["text"])
        tokenizer = train_tokenizer(texts, settings.vocab_size)
    reports = {}
    for name, documents in (("validation", split.validation), ("train", split.train)):
        path = folder / f"{name}.arrow"
        reports[name] = pack_split(documents, tokenizer, settings.block_size, settings.pack, path, name)
        _check_blocks(reports[name], name, settings)
    tokenizer.save_pretrained(folder / "tokenizer")
    report = PackingReport(
        source=settings.source,
        block_size=settings.block_size,
        vocabulary=len(tokenizer),
        train=reports["train"],
        validation=reports["validation"],
        empty_documents=split.empty_documents,
        duplicate_documents=split.duplicate_documents,
        notes=split.notes,
    )
    shutil.rmtree(scratch)
    write_report(folder, report)


def write_report(folder: Path, report: PackingReport) -> None:
    """report.json, with the sizes of the arrow files beside it, by which :func:`is_whole` knows them."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.arrow"))}
    (folder / "report.json").write_text(json.dumps({"report": report.to_dict(), "bytes": sizes}, indent=2))


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` is a finished corpus whose files have the sizes that its report tells."""
    try:
        sizes = json.loads((folder / "report.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def read_report(folder: Path) -> PackingReport:
    """The report of a finished corpus."""
    return PackingReport.from_dict(json.loads((folder / "report.json").read_text())["report"])


def read_blocks(path: Path) -> "Dataset":
    """A packed split, memory-mapped, its rows as numpy values."""
    from datasets import Dataset

    return Dataset.from_file(str(path)).with_format("numpy")


def prepare_corpus(settings: CorpusSettings) -> PreparedCorpus:
    """The corpus that ``settings`` describe, from ``cache_dir`` if it was prepared before, else prepared now.

    Raises:
        UserError: bad source, tokenizer or settings; one line that says what to do.
    """
    if settings.streaming:
        raise UserError("streaming is on: a corpus is prepared on disk with streaming off, see streaming_corpus")
    source = open_source(settings)
    tokenizer = None if settings.tokenizer is None else load_tokenizer(settings.tokenizer)
    key = corpus_key(settings, source.fingerprint, tokenizer)
    folder = cached_folder(
        settings.cache_folder, key, is_whole, lambda empty: build_corpus(settings, source, tokenizer, empty)
    )
    return PreparedCorpus(
        train=read_blocks(folder / "train.arrow"),
        validation=read_blocks(folder / "validation.arrow"),
        tokenizer=load_tokenizer(folder / "tokenizer"),
        report=read_report(folder),
        folder=folder,
    )
