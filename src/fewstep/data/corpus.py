"""From a source to packed blocks: on disk, or with a train split that is streamed."""

import hashlib
import json
import math
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep import __version__
from fewstep.data.packing import BlockPacker, SplitReport, batch_size, pack_split
from fewstep.data.sources import SPLITS, CorpusSettings, Source, open_source, text_digest
from fewstep.data.stream import BlockStream
from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer, vocabulary_size
from fewstep.errors import UserError
from fewstep.locking import cached_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

_FORMAT = 2
"""Raise it when the files of a prepared corpus change their meaning."""
FIRST_DOCUMENTS, FIRST_CHARACTERS = 20_000, 1 << 26
"""What a stream's validation split and tokenizer are taken from: at most so many documents, with about so much text."""
_WARN_UNKNOWN, _REFUSE_UNKNOWN = 0.01, 0.5


@dataclass(frozen=True)
class PackingReport:
    """Counts of a whole corpus. ``train`` is None if it is streamed, since it is never counted then.

    ``is_lossless``: the tokens spell all of the text, without which bits per byte mean nothing. ``notes`` say
    what was left out or lost.
    """

    source: str
    block_size: int
    vocabulary: int
    is_lossless: bool
    train: SplitReport | None
    validation: SplitReport
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        train, validation = self.train, str(self.validation)
        if train is not None:
            documents = self.validation.documents / (train.documents + self.validation.documents)
            tokens = self.validation.tokens / (train.tokens + self.validation.tokens)
            validation += f" ({documents:.1%} of the documents, {tokens:.1%} of the tokens)"
        return (
            f"{self.source}: blocks of {self.block_size}, {self.vocabulary:,} token types; "
            f"train: {train or 'streamed, packed as it comes'}\n"
            f"{'; '.join([f'validation: {validation}', *self.notes])}"
        )


@dataclass(frozen=True)
class PreparedCorpus:
    """Packed blocks on disk, memory-mapped; ``train`` is a :class:`BlockStream` if the settings say streaming.

    Rows are numpy values: ``index`` (row number), ``input_ids`` (L), ``length`` (tokens that count: in blocks of one
    document those up to its end-of-text, that included), ``num_bytes`` (UTF-8 bytes of text that they stand for), and
    of pairs ``prompt`` (tokens of the prompt, which come first). ``folder`` holds it all. ``content_digest`` is the
    SHA-256 of the blocks, of a stream its source's fingerprint: equal digests, equal rows to train on.
    """

    train: "Dataset"
    validation: "Dataset"
    tokenizer: "PreTrainedTokenizerFast"
    report: PackingReport
    folder: Path
    content_digest: str

    @property
    def fingerprint(self) -> str:
        """Hash of settings, source and versions: equal fingerprints, equal blocks."""
        return self.folder.name

    def length_counts(self) -> tuple[int, ...]:
        """How many blocks have 1, 2, ... L tokens that count: of the train split, or, of a stream, of the other."""
        rows = self.validation if isinstance(self.train, BlockStream) else self.train
        return tuple(np.bincount(rows["length"][:], minlength=self.report.block_size + 1)[1:].tolist())


def prepare_corpus(settings: CorpusSettings, rank: int = 0, world_size: int = 1) -> PreparedCorpus:
    """The corpus that ``settings`` describe, from ``cache_dir`` if it was prepared before, else prepared now.

    A streamed train split is never stored, and ``world_size`` ranks share it. Its validation split is held out of the
    first documents (at most 20,000, or 64 million characters), and the tokenizer is trained on the others of them;
    these two are prepared. Raises ``UserError`` for a bad source, tokenizer or setting.
    """
    from datasets import Dataset
    from pydantic import TypeAdapter

    source = open_source(settings)
    tokenizer = None if settings.tokenizer is None else load_tokenizer(settings.tokenizer)
    key = _corpus_key(settings, source.fingerprint, tokenizer)
    root = Path(settings.cache_dir).expanduser()
    folder = cached_folder(root, key, _is_whole, lambda empty: _build_corpus(settings, source, tokenizer, empty))
    tokenizer = load_tokenizer(folder / "tokenizer")
    stored = json.loads((folder / "report.json").read_text())
    report = TypeAdapter(PackingReport).validate_python(stored["report"])
    splits = {name: Dataset.from_file(str(folder / name)).with_format("numpy") for name in stored["bytes"]}
    train: Any = splits.get("train.arrow")
    if train is None:
        train = BlockStream(source, tokenizer, settings, frozenset(stored["held_out"]), rank, world_size)
    digest = stored["digest"] or source.fingerprint
    return PreparedCorpus(train, splits["validation.arrow"], tokenizer, report, folder, digest)


def prepared_tokenizer(settings: CorpusSettings) -> "PreTrainedTokenizerFast | None":
    """The tokenizer that was trained for ``settings``, None unless their corpus lies prepared in ``cache_dir``."""
    folder = Path(settings.cache_dir).expanduser() / _corpus_key(settings, open_source(settings).fingerprint, None)
    return load_tokenizer(folder / "tokenizer") if _is_whole(folder) else None


def _corpus_key(settings: CorpusSettings, source_fingerprint: str, tokenizer: "PreTrainedTokenizerFast | None") -> str:
    """Hash (24 hex digits) of all that decides the blocks: settings, source, tokenizer, versions."""
    fields = asdict(settings)
    # The place of the cache and the names of tokenizer and source do not matter, their contents do.
    del fields["cache_dir"]
    if settings.prompt_field is None:  # so that what was prepared before there were pairs is found
        del fields["prompt_field"]
    if tokenizer is not None:
        fields["tokenizer"] = tokenizer_fingerprint(tokenizer)
        fields["special"] = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        del fields["vocab_size"]
    versions = [_FORMAT, __version__, version("datasets"), version("tokenizers")]
    text = json.dumps([fields, source_fingerprint, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _is_whole(folder: Path) -> bool:
    """Whether ``folder`` is a finished corpus whose files have the sizes that its report states."""
    try:
        sizes = json.loads((folder / "report.json").read_text())["bytes"].items()
        return all((folder / name).stat().st_size == size for name, size in sizes)
    except (OSError, ValueError, KeyError):
        return False


def _build_corpus(
    settings: CorpusSettings, source: Source, tokenizer: "PreTrainedTokenizerFast | None", folder: Path
) -> None:
    """Write validation.arrow, tokenizer/, report.json, and train.arrow unless it is streamed, into ``folder``.

    Raises ``UserError`` for no documents, a split that is too short, and text that the tokenizer loses.
    """
    scratch = folder / "documents"
    scratch.mkdir()
    parts, held_out, notes = _split_documents(source, settings, scratch / "all.arrow")
    if tokenizer is None:
        tokenizer = train_tokenizer(parts["train"]["text"], settings.vocab_size)
    reports, digest = {}, hashlib.sha256()
    for name in SPLITS[1:] if settings.streaming else SPLITS:
        packer = BlockPacker(tokenizer, settings.block_size, one_document=settings.one_document)
        for rows in pack_split(parts[name], packer, folder / f"{name}.arrow").with_format("numpy").iter(8192):
            for column in ("input_ids", "length", *(name for name in ("prompt",) if name in rows)):
                digest.update(np.ascontiguousarray(rows[column]).tobytes())
        reports[name] = packer.report
    _check_splits(reports, settings)
    tokenizer.save_pretrained(folder / "tokenizer")
    known = not any(report.unknown_share for report in reports.values())
    some_texts = parts["validation"][: batch_size(parts["validation"])]["text"]
    report = PackingReport(
        source=settings.source,
        block_size=settings.block_size,
        vocabulary=vocabulary_size(tokenizer),
        is_lossless=known and packer.encoder.is_lossless(some_texts),
        train=reports.get("train"),
        validation=reports["validation"],
        notes=(*notes, *source.notes, *_unknown_text_notes(reports, settings)),
    )
    shutil.rmtree(scratch)
    stored = {
        "report": asdict(report),
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.glob("*.arrow"))},
        "held_out": held_out if settings.streaming else [],
        "digest": None if settings.streaming else digest.hexdigest(),
    }
    (folder / "report.json").write_text(json.dumps(stored, indent=2))


def _split_documents(
    source: Source, settings: CorpusSettings, file: Path
) -> tuple[dict[str, "Dataset"], list[int], list[str]]:
    """Train and validation documents, digests of the latter, and notes.

    Every k-th document is held out, without repetitions of earlier ones; if the source gives splits, these are used. A
    single document is cut: its tail is held out. Raises ``UserError`` for no document with text, and for an empty side.
    """
    digests, sides, counts = array("Q"), array("b"), Counter[str]()
    documents = _write_documents(source, settings, file, digests, sides, counts)
    if not len(documents):
        raise UserError(f"source {settings.source} holds no documents with text: {counts['read']} read, all empty")
    used = np.sort(np.unique(digests, return_index=True)[1])
    empty, duplicates, notes = counts["read"] - len(documents), len(documents) - len(used), []
    if empty or duplicates:
        notes.append(f"left out: {empty:,} empty, {duplicates:,} duplicate documents")
    if counts["replaced"]:
        notes.append(f"{counts['replaced']:,} characters are U+FFFD, which stands for what is not valid Unicode")
    if len(used) == 1:
        notes.append(f"one document only: its last {settings.validation_fraction:.0%} is the validation split")
        return _cut_single(documents[int(used[0])]["text"], settings), [], notes
    given = np.array(sides)[used]
    held_out = given == 2 if given.any() else validation_rows(len(used), settings.validation_fraction)
    if held_out.all() or not held_out.any():
        empty_side = "train" if held_out.all() else "validation"
        raise UserError(f"source {settings.source} gives no documents of the {empty_side} split: let it give both")
    if settings.streaming:
        notes.append(f"{held_out.sum():,} of the first {counts['read']:,} documents are the validation split")
    parts = {"train": documents.select(used[~held_out]), "validation": documents.select(used[held_out])}
    return parts, np.array(digests)[used[held_out]].tolist(), notes


def _write_documents(
    source: Source, settings: CorpusSettings, file: Path, digests: array, sides: array, counts: Counter[str]
) -> "Dataset":
    """The documents with text, of a stream the first ones, in an arrow file: ``text``, and of pairs ``prompt``.

    Appended for each of them is its digest, and 0 for a record without a split, 1 for train, 2 for validation; counted
    are the documents ``read``, their ``characters``, and those ``replaced``.
    """
    from datasets import Dataset, Features, Value
    from datasets.arrow_writer import ArrowWriter

    columns = {"text": Value("large_string")} | ({"prompt": Value("int32")} if settings.prompt_field else {})
    with ArrowWriter(path=str(file), features=Features(columns), writer_batch_size=100) as writer:
        for record in islice(source.records, FIRST_DOCUMENTS if settings.streaming else None):
            text = record["text"]
            counts.update(read=1, replaced=text.count("\ufffd"), characters=len(text))
            if text:
                writer.write({name: record[name] for name in columns})
                digests.append(text_digest(text))
                sides.append(("", *SPLITS).index(record.get("split", "")))
            if settings.streaming and counts["characters"] >= FIRST_CHARACTERS:
                break
        writer.finalize()
    return Dataset.from_file(str(file))


def validation_rows(count: int, fraction: float) -> np.ndarray:
    """Which of ``count`` documents, 2 or more, are held out: evenly spread, at least one on each side. Bool (count,).

    Document i is held out where floor((i + 1) fraction) exceeds floor(i fraction), so about every (1/fraction)-th.
    """
    held_out = np.diff(np.floor(np.arange(count + 1) * fraction)) > 0
    held_out[-1] |= not held_out.any()
    held_out[0] &= not held_out.all()
    return held_out


def _cut_single(text: str, settings: CorpusSettings) -> dict[str, "Dataset"]:
    from datasets import Dataset

    if settings.streaming:
        raise UserError(f"source {settings.source} is one document, which cannot be streamed: turn streaming off")
    if settings.prompt_field is not None:
        raise UserError(f"source {settings.source} is one pair, of which none is left to hold out: give more pairs")
    place = math.floor(len(text) * (1 - settings.validation_fraction))
    while place > 0 and not text[place].isspace():
        place -= 1
    parts = {"train": text[:place], "validation": text[place:]}
    return {name: Dataset.from_dict({"text": [part.strip()]}) for name, part in parts.items()}


def _check_splits(reports: dict[str, SplitReport], settings: CorpusSettings) -> None:
    """Raise ``UserError`` for a split without a block, and for more text held out than trained on, unless asked for."""
    for name, split in reports.items():
        if split.blocks == 0:
            raise UserError(
                f"the {name} split of {settings.source} has {split.tokens} tokens, fewer than one block of "
                f"{settings.block_size}: give more text, a smaller block_size, or another validation_fraction"
            )
    validation, train = reports["validation"].tokens, reports.get("train")
    if train is not None and validation > train.tokens and settings.validation_fraction < 0.5:
        raise UserError(
            f"the validation split of {settings.source} would hold {validation:,} tokens and the train split "
            f"{train.tokens:,}: split its long documents into several, in .txt files by <|endoftext|>"
        )


def _unknown_text_notes(reports: dict[str, SplitReport], settings: CorpusSettings) -> Iterator[str]:
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
