"""Documents to blocks of equal length, every token accounted for. L tokens in a block."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep.data.tokenizer import DocumentEncoder, EncodedDocument
from fewstep.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast


@dataclass
class SplitReport:
    """Counts of one split, which run on while it is packed.

    ``tokens`` of the documents, one end-of-text each included; ``bytes`` of their UTF-8 text; ``dropped_tokens`` of the
    tail that filled no block, or of documents cut off; ``cut_documents`` that did not fit into a block with their end;
    ``filled_positions`` behind the ends of documents; ``cut_prompts`` that lost tokens at their beginning;
    ``unknown_tokens`` and ``lost_bytes`` as in :class:`EncodedDocument`.
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
        self.block_size, self.one_document = block_size, one_document
        self._ends = np.full(block_size, tokenizer.eos_token_id, np.int32)
        self._end_bytes = np.full(block_size, -1, np.int32)  # marks what is behind the first end
        self._end_bytes[0] = 0
        self.rest_ids = self.rest_bytes = np.zeros(0, np.int32)

    def add_texts(self, texts: list[str], prompts: list[int] | None = None) -> dict[str, np.ndarray]:
        """:meth:`add` of the tokens of about a MiB of text.

        Of pairs, each text begins with a prompt of so many characters as ``prompts`` says, and ``prompt`` (n,) int32
        are its tokens. A prompt that does not fit beside its text loses tokens at its beginning, down to half a block;
        then the text is cut off. Raises ``UserError`` for a prompt that fills a block by itself.
        """
        if prompts is None:
            return self.add(self.encoder.encode(texts))
        heads = self.encoder.encode([text[:size] for text, size in zip(texts, prompts, strict=True)])
        tails = self.encoder.encode([text[size:] for text, size in zip(texts, prompts, strict=True)])
        sizes = np.array([len(head.ids) for head in heads], np.int32)
        longest = int(sizes.argmax())
        if sizes[longest] >= self.block_size:
            raise UserError(
                f"the prompt {texts[longest][: min(prompts[longest], 40)]!a} has {sizes[longest]} tokens and a block "
                f"{self.block_size}: give a larger block_size, or leave the record out"
            )
        room = np.array([self.block_size - len(tail.ids) - 1 for tail in tails], np.int32)
        kept = np.minimum(sizes, np.maximum(room, self.block_size // 2))
        documents = [head + tail for head, tail in zip(heads, tails, strict=True)]
        return {**self.add(documents, sizes - kept), "prompt": kept}

    def add(self, documents: list[EncodedDocument], starts: Iterable[int] = repeat(0)) -> dict[str, np.ndarray]:
        """The n blocks that are full after these documents, of which each is used from a token of ``starts`` on.

        ``index`` (n,) their numbers, ``input_ids`` (n, L) int32, ``length`` (tokens up to the document's end-of-text,
        that included, or L) and ``num_bytes`` (n,) int32.
        """
        report, ids, num_bytes = self.report, [self.rest_ids], [self.rest_bytes]
        for document, start in zip(documents, starts, strict=False):
            size = len(document.ids)
            stop, ends = size, 1
            if self.one_document:
                stop = min(size, int(start) + self.block_size)
                ends = self.block_size - (stop - int(start))
                report.cut_prompts += int(start > 0)
                report.cut_documents += ends == 0
                report.dropped_tokens += int(start) + size - stop + (ends == 0)
            ids += [document.ids[start:stop], self._ends[:ends]]
            num_bytes += [document.num_bytes[start:stop], self._end_bytes[:ends]]
            report.tokens += size + 1
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


def batch_size(documents: "Dataset") -> int:
    """How many documents, at most 1000, are about a MiB of text: so much is tokenised at a time."""
    mean_bytes = documents.data.nbytes / len(documents.data)
    return max(1, min(1000, int((1 << 20) / mean_bytes)))


def pack_split(documents: "Dataset", packer: BlockPacker, path: Path) -> "Dataset":
    """Pack a split (column ``text``, of pairs also ``prompt``) into the arrow file ``path``, memory-mapped.

    In one process (the tokenizer itself uses all cores), so that packing loses less than one block in all.
    """
    from datasets import Dataset, Features, List, Value
    from datasets.arrow_writer import ArrowWriter
    from datasets.utils import tqdm

    number = Value("int32")
    columns = {"index": Value("int64"), "input_ids": List(number, packer.block_size), "length": number}
    columns |= dict.fromkeys(["num_bytes", *(["prompt"] if "prompt" in documents.column_names else [])], number)
    with (
        ArrowWriter(path=str(path), features=Features(columns)) as writer,
        tqdm(total=len(documents), desc=f"packing {path.stem}", unit=" documents") as bar,
    ):
        for batch in documents.iter(batch_size(documents)):
            writer.write_batch(packer.add_texts(batch["text"], batch.get("prompt")))
            bar.update(len(batch["text"]))
        writer.finalize()
    return Dataset.from_file(str(path))
