"""A corpus whose train split is read as it goes, and never stored."""

import copy
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.data import hub
from fewstep.data.block_stream import BlockStream, stream_texts
from fewstep.data.cache import cached_folder
from fewstep.data.corpus import corpus_key, is_whole, read_blocks, read_report, text_digest, write_report
from fewstep.data.packing import pack_split
from fewstep.data.report import PackingReport
from fewstep.data.settings import CorpusSettings
from fewstep.data.sources import HubSource, LocalSource, check_text_column, open_source
from fewstep.data.tokenizer import load_tokenizer, train_tokenizer
from fewstep.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

FIRST_DOCUMENTS = 20_000
"""Train documents that a tokenizer is trained on, unless ``max_documents`` is smaller."""
_BUILDERS = {".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class StreamingCorpus:
    """``train`` packs while it reads; ``validation`` (the source's first documents) lies on disk, memory-mapped."""

    train: BlockStream
    validation: "Dataset"
    tokenizer: "PreTrainedTokenizerFast"
    report: PackingReport
    folder: Path


def open_stream(settings: CorpusSettings) -> tuple[Any, str]:
    """The source's records as a ``datasets.IterableDataset``, and its fingerprint.

    Raises:
        UserError: a source that cannot be streamed or reached.
    """
    from datasets import load_dataset

    source = open_source(settings)
    if isinstance(source, HubSource):
        fingerprint = source.name + hub.check_on_hub("data set", source.name.partition(":")[0])
        documents = hub.load_train_split(source.name, streaming=True)
    else:
        suffixes = {path.suffix.lower() for path in source.paths} if isinstance(source, LocalSource) else {".txt"}
        builder = _BUILDERS.get(next(iter(suffixes))) if len(suffixes) == 1 else None
        if builder is None or not isinstance(source, LocalSource):
            raise UserError(
                f"source {settings.source} cannot be streamed: expected a hub data set, or .jsonl or .parquet files of "
                "one kind; turn streaming off"
            )
        fingerprint = source.fingerprint
        files = [str(path) for path in source.paths]
        documents = load_dataset(builder, data_files=files, split="train", streaming=True)
    if documents.features is not None:
        check_text_column(settings.source, settings.text_field, documents.features)
    return (documents if settings.max_documents is None else documents.take(settings.max_documents)), fingerprint


def _build_head(
    settings: CorpusSettings, documents: Any, tokenizer: "PreTrainedTokenizerFast | None", folder: Path
) -> None:
    """Write validation.arrow, held_out.json, tokenizer/ and report.json of a streamed corpus into ``folder``."""
    from datasets import Dataset

    limit = min(settings.max_documents or FIRST_DOCUMENTS, FIRST_DOCUMENTS)
    count = max(1, round(settings.validation_fraction * limit))
    texts = stream_texts(copy.deepcopy(documents), settings)
    first = list(islice(texts, count))
    unique = {text_digest(text): text for text in first if text}
    if not unique:
        raise UserError(f"source {settings.source} holds no text in its first {count} documents")
    if tokenizer is None:
        train = (text for text in islice(texts, limit - count) if text and text_digest(text) not in unique)
        tokenizer = train_tokenizer(train, settings.vocab_size)
    path = folder / "validation.arrow"
    held_out = Dataset.from_dict({"text": list(unique.values())})
    validation = pack_split(held_out, tokenizer, settings.block_size, settings.pack, path, "validation")
    if validation.blocks == 0:
        raise UserError(
            f"the first {count} documents of {settings.source} have {validation.tokens} tokens, fewer than one block "
            f"of {settings.block_size}: raise validation_fraction or lower block_size"
        )
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "held_out.json").write_text(json.dumps(sorted(unique)))
    empty = sum(not text for text in first)
    report = PackingReport(
        source=settings.source,
        block_size=settings.block_size,
        vocabulary=len(tokenizer),
        train=None,
        validation=validation,
        empty_documents=empty,
        duplicate_documents=len(first) - empty - len(unique),
        notes=(f"the first {count:,} documents are the validation split",),
    )
    write_report(folder, report)


def streaming_corpus(settings: CorpusSettings, rank: int = 0, world_size: int = 1) -> StreamingCorpus:
    """A corpus whose train split is never stored: for sources larger than the disk.

    The validation split and a trained tokenizer are prepared once and kept in ``cache_dir``.

    Args:
        settings: with ``streaming=True``.
        rank: this process, 0 <= rank < world_size.
        world_size: number of processes that share the train documents.

    Raises:
        UserError: bad source, tokenizer or settings; one line that says what to do.
    """
    if not settings.streaming:
        raise UserError("streaming is off: set streaming to true, or use prepare_corpus")
    documents, fingerprint = open_stream(settings)
    given = None if settings.tokenizer is None else load_tokenizer(settings.tokenizer)
    folder = cached_folder(
        settings.cache_folder,
        corpus_key(settings, fingerprint, given),
        is_whole,
        lambda empty: _build_head(settings, documents, given, empty),
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    held_out = frozenset(json.loads((folder / "held_out.json").read_text()))
    return StreamingCorpus(
        train=BlockStream(documents, tokenizer, settings, held_out, rank, world_size),
        validation=read_blocks(folder / "validation.arrow"),
        tokenizer=tokenizer,
        report=read_report(folder),
        folder=folder,
    )
