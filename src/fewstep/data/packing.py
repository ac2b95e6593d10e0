"""Documents to blocks of equal length, every token accounted for. L tokens in a block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.data.tokenizer import DocumentEncoder, EncodedDocument
from fewstep.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

BATCH_BYTES = 1 << 20
"""Text that is held as Python strings at a time, in at most 1000 documents."""


@dataclass
class SplitReport:
    """Counts of one split, which run on while it is packed.

    ``documents`` used; ``tokens`` of those documents, one end-of-text each included; ``bytes`` of their UTF-8 text;
    ``blocks`` written; ``dropped_tokens`` of the tail that filled no block, or of documents cut off;
    ``cut_documents`` that did not fit into a block with their end; ``filled_positions`` behind the ends of documents;
    ``cut_prompts`` that lost tokens at their beginning; ``unknown_tokens`` and ``lost_bytes`` as in
    :class:`EncodedDocument`.
    """

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    blocks: int = 0
    dropped_tokens: int = 0
    cut_documents: int = 0
    filled_positions: int = 0
    cut_prompts: int = 0
    unknown_tokens: int = 0
    lost_bytes: int = 0

    def __str__(self) -> str:
        counted = f"{self.documents:,} documents, {self.tokens:,} tokens, {self.blocks:,} blocks"
        if self.cut_documents:
            counted += f", {self.cut_documents / self.documents:.1%} of the documents longer than a block and cut off"
        if self.cut_prompts:
            counted += f", {self.cut_prompts:,} prompts without their beginning, so that their texts fit"
        left = {"tokens dropped": self.dropped_tokens, "positions behind the ends": self.filled_positions}
        return counted + "".join(f", {count:,} {what}" for what, count in left.items() if count)

    @property
    def unknown_share(self) -> float:
        """Share in [0, 1] of the tokens that are unknown, or of the bytes that are lost, whichever is larger."""
        return max(self.unknown_tokens / max(self.tokens, 1), self.lost_bytes / max(self.bytes, 1))


class BlockPacker:
    """Cuts documents into blocks of ``block_size`` tokens, an end-of-text after each document.

    Blocks of ``one_document`` hold one each, cut off or filled with further ends of text. Others join documents and
    keep the rest for the next call (``rest_ids``, ``rest_bytes``, below one block), which ``report`` counts as dropped.
    An end-of-text stands for no bytes. ``report`` counts over all calls.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", block_size: int, *, one_document: bool) -> None:
        self.encoder, self.report = DocumentEncoder(tokenizer), SplitReport()
        self.eos_id = int(tokenizer.eos_token_id)
        self.block_size, self.one_document = block_size, one_document
        self.rest_ids = self.rest_bytes = np.zeros(0, np.int32)

    def add_texts(self, texts: list[str]) -> dict[str, np.ndarray]:
        """:meth:`add` of the tokens of about a MiB of text."""
        return self.add(self.encoder.encode(texts))

    def add_pairs(self, texts: list[str], prompts: list[int]) -> dict[str, np.ndarray]:
        """:meth:`add` of texts that begin with a prompt of so many characters; ``prompt`` (n,) int32 are its tokens.

        A prompt that does not fit beside its text loses tokens at its beginning, down to half a block; then the text is
        cut off. Raises ``UserError`` for a prompt that fills a block by itself.
        """
        sides = zip(texts, prompts, strict=True)
        heads, tails = zip(*((text[:size], text[size:]) for text, size in sides), strict=True)
        documents, kept, report = [], [], self.report
        for text, head, tail in zip(
            heads, self.encoder.encode(list(heads)), self.encoder.encode(list(tails)), strict=True
        ):
            if len(head.ids) >= self.block_size:
                raise UserError(
                    f"the prompt {text[:40]!a} has {len(head.ids)} tokens and a block {self.block_size}: give a larger "
                    "block_size, or leave the record out"
                )
            size = min(len(head.ids), max(self.block_size - len(tail.ids) - 1, self.block_size // 2))
            lost = len(head.ids) - size
            report.cut_prompts += lost > 0
            report.dropped_tokens, report.tokens = report.dropped_tokens + lost, report.tokens + lost
            report.bytes += int(head.num_bytes[:lost].sum())
            ids, num_bytes = (
                np.concatenate([first[lost:], second])
                for first, second in ((head.ids, tail.ids), (head.num_bytes, tail.num_bytes))
            )
            unknown, lost_bytes = head.unknown_tokens + tail.unknown_tokens, head.lost_bytes + tail.lost_bytes
            documents.append(EncodedDocument(ids, num_bytes, unknown, lost_bytes))
            kept.append(size)
        return {**self.add(documents), "prompt": np.array(kept, np.int32)}

    def add(self, documents: list[EncodedDocument]) -> dict[str, np.ndarray]:
        """The n blocks that are full after these documents.

        ``index`` (n,) their numbers, ``input_ids`` (n, L) int32, ``length`` (tokens up to the document's end-of-text,
        that included, or L) and ``num_bytes`` (n,) int32.
        """
        report, ids, num_bytes = self.report, [self.rest_ids], [self.rest_bytes]
        for document in documents:
            size, ends = len(document.ids), 1
            if self.one_document:
                size = min(size, self.block_size)
                ends = self.block_size - size
                report.cut_documents += ends == 0
                report.dropped_tokens += len(document.ids) - size + (ends == 0)
            ids += [document.ids[:size], np.full(ends, self.eos_id, np.int32)]
            # What is behind the end is marked by -1 bytes.
            num_bytes += [document.num_bytes[:size], np.array([0, *[-1] * (ends - 1)][:ends], np.int32)]
            report.tokens += len(document.ids) + 1
            report.bytes += int(document.num_bytes.sum())
            report.unknown_tokens += document.unknown_tokens
            report.lost_bytes += document.lost_bytes
        report.documents += len(documents)
        joined, joined_bytes = np.concatenate(ids), np.concatenate(num_bytes)
        whole = len(joined) // self.block_size * self.block_size
        self.rest_ids, self.rest_bytes = joined[whole:], joined_bytes[whole:]
        blocks, in_blocks = (part[:whole].reshape(-1, self.block_size) for part in (joined, joined_bytes))
        length = (in_blocks >= 0).sum(1, dtype=np.int32)
        index = np.arange(report.blocks, report.blocks + len(blocks))
        report.blocks += len(blocks)
        report.filled_positions += int(whole - length.sum())
        if not self.one_document:
            report.dropped_tokens = len(self.rest_ids)
        num_spelled = np.maximum(in_blocks, 0).sum(1, dtype=np.int32)
        return {"index": index, "input_ids": blocks, "length": length, "num_bytes": num_spelled}


def write_arrow(tables: Iterable["pa.Table"], path: Path) -> "Dataset":
    """Write tables (at least one) to an arrow file and read it back memory-mapped, so that memory bounds nothing."""
    import pyarrow as pa
    from datasets import Dataset

    iterator = iter(tables)
    table = next(iterator)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
        for table in iterator:
            writer.write_table(table)
    return Dataset.from_file(str(path))


def text_batches(documents: "Dataset") -> Iterator[list[str]]:
    """The column ``text`` in lists of about ``BATCH_BYTES``."""
    return (batch["text"] for batch in _batches(documents, None))


def _batches(documents: "Dataset", progress: str | None) -> Iterator[dict[str, Any]]:
    """All columns in batches of about ``BATCH_BYTES``, with a progress bar that is called ``progress``."""
    from datasets.utils import tqdm

    mean = documents.data.nbytes / max(len(documents.data), 1)
    size = max(1, min(1000, int(BATCH_BYTES / max(mean, 1))))
    with tqdm(total=len(documents), desc=progress, unit=" documents", disable=progress is None) as bar:
        for batch in documents.iter(size):
            yield batch
            bar.update(len(batch["text"]))


def pack_split(
    documents: "Dataset", tokenizer: "PreTrainedTokenizerFast", block_size: int, path: Path, *, one_document: bool
) -> SplitReport:
    """Tokenise and pack a split (column ``text``, of pairs also ``prompt``) into the arrow file ``path``.

    The documents pass one packer in order, in one process (the tokenizer itself uses all cores), so that packing
    loses less than one block in all.
    """
    import pyarrow as pa

    packer = BlockPacker(tokenizer, block_size, one_document=one_document)

    def tables() -> Iterator["pa.Table"]:
        for batch in _batches(documents, f"packing {path.stem}"):
            texts, prompts = batch["text"], batch.get("prompt")
            blocks = packer.add_texts(texts) if prompts is None else packer.add_pairs(texts, prompts)
            ids = pa.FixedSizeListArray.from_arrays(pa.array(blocks.pop("input_ids").ravel()), block_size)
            yield pa.table({**blocks, "input_ids": ids})

    write_arrow(tables(), path)
    return packer.report
