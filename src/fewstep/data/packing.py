"""Documents to blocks of equal length, with every token accounted for."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewstep.data.reading import clean_document
from fewstep.data.report import SplitReport
from fewstep.data.tokenizer import DocumentEncoder, EncodedDocument

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerFast

_BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class Blocks:
    """n blocks: ``ids`` (n, L) int32, ``length`` (n,) real tokens, ``num_bytes`` (n,) UTF-8 bytes of them."""

    ids: np.ndarray
    length: np.ndarray
    num_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class BlockPacker:
    """Cuts documents into blocks of ``block_size`` tokens, an end-of-text after each document.

    ``pack`` True joins documents and keeps the rest for the next call (``rest_ids``, ``rest_bytes``, below one block);
    False gives every document blocks of its own, the last one padded. An end-of-text stands for no bytes. The counts
    ``documents``, ``tokens``, ``bytes``, ``blocks`` and ``padded`` run on over calls.
    """

    def __init__(self, block_size: int, eos_id: int, pad_id: int, pack: bool) -> None:
        self.block_size, self.eos_id, self.pad_id, self.pack = block_size, eos_id, pad_id, pack
        self.rest_ids = np.zeros(0, dtype=np.int32)
        self.rest_bytes = np.zeros(0, dtype=np.int32)
        self.documents = self.tokens = self.bytes = self.blocks = self.padded = 0

    def add(self, documents: list[EncodedDocument]) -> Blocks:
        """The blocks that are full (all, padded, if not ``pack``) after these documents."""
        ids, num_bytes = self._joined(documents) if self.pack else self._padded(documents)
        rows = len(ids) // self.block_size
        whole = rows * self.block_size
        self.rest_ids, self.rest_bytes = ids[whole:], num_bytes[whole:]
        real = (num_bytes[:whole] >= 0).reshape(rows, self.block_size)
        length = real.sum(1)
        spelled = np.maximum(num_bytes[:whole], 0).reshape(rows, self.block_size).sum(1)
        self.blocks += rows
        self.padded += int(whole - length.sum())
        return Blocks(ids[:whole].reshape(rows, self.block_size), length, spelled)

    def _joined(self, documents: list[EncodedDocument]) -> tuple[np.ndarray, np.ndarray]:
        ids, num_bytes = [self.rest_ids], [self.rest_bytes]
        for document in documents:
            self._count(document)
            ids += [document.ids, np.array([self.eos_id], np.int32)]
            num_bytes += [document.num_bytes, np.zeros(1, np.int32)]
        return np.concatenate(ids), np.concatenate(num_bytes)

    def _padded(self, documents: list[EncodedDocument]) -> tuple[np.ndarray, np.ndarray]:
        """Like ``_joined``, each document filled up to whole blocks; padding carries -1 bytes as its mark."""
        ids, num_bytes = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
        for document in documents:
            self._count(document)
            fill = -(len(document.ids) + 1) % self.block_size
            ids += [document.ids, np.array([self.eos_id], np.int32), np.full(fill, self.pad_id, np.int32)]
            num_bytes += [document.num_bytes, np.zeros(1, np.int32), np.full(fill, -1, np.int32)]
        return np.concatenate(ids), np.concatenate(num_bytes)

    def _count(self, document: EncodedDocument) -> None:
        self.documents += 1
        self.tokens += len(document.ids) + 1
        self.bytes += int(document.num_bytes.sum())

    def report(self) -> SplitReport:
        """The counts, what is left over below one block being dropped."""
        return SplitReport(self.documents, self.tokens, self.bytes, self.blocks, len(self.rest_ids), self.padded)


def block_features(block_size: int) -> "Features":
    """Columns of a packed split: index, input_ids (L), length, num_bytes."""
    from datasets import Features, List, Value

    return Features(
        {
            "index": Value("int64"),
            "input_ids": List(Value("int32"), length=block_size),
            "length": Value("int32"),
            "num_bytes": Value("int32"),
        }
    )


def _table(blocks: Blocks, first_index: int) -> "pa.Table":
    import pyarrow as pa

    ids = pa.FixedSizeListArray.from_arrays(pa.array(blocks.ids.ravel(), pa.int32()), blocks.ids.shape[1])
    index = pa.array(np.arange(first_index, first_index + len(blocks)), pa.int64())
    length, num_bytes = pa.array(blocks.length, pa.int32()), pa.array(blocks.num_bytes, pa.int32())
    return pa.table({"index": index, "input_ids": ids, "length": length, "num_bytes": num_bytes})


def make_packer(tokenizer: "PreTrainedTokenizerFast", block_size: int, pack: bool) -> BlockPacker:
    """A packer that ends and pads with the tokenizer's own tokens."""
    return BlockPacker(block_size, int(tokenizer.eos_token_id), int(tokenizer.pad_token_id), pack)


def _batch_size(documents: "Dataset") -> int:
    """Documents at a time: about ``_BATCH_BYTES`` of text, for memory, and so few that the progress bar moves."""
    mean = documents.data.nbytes / max(len(documents.data), 1)
    return max(1, min(1000, len(documents) // 20, int(_BATCH_BYTES / max(mean, 1))))


def pack_split(
    documents: "Dataset", tokenizer: "PreTrainedTokenizerFast", block_size: int, pack: bool, path: Path, name: str
) -> SplitReport:
    """Tokenise and pack a split (column ``text``) into the arrow file ``path``; ``name`` labels the progress bar.

    The documents pass one packer in order, in one process (the tokenizer itself uses all cores), so that packing
    loses less than one block in all and not one a batch.
    """
    encoder, packer = DocumentEncoder(tokenizer), make_packer(tokenizer, block_size, pack)

    def pack_batch(texts: list[str]) -> "pa.Table":
        first = packer.blocks
        return _table(packer.add(encoder.encode([clean_document(text) for text in texts])), first)

    documents.map(
        pack_batch,
        input_columns="text",
        batched=True,
        batch_size=_batch_size(documents),
        remove_columns=documents.column_names,
        features=block_features(block_size),
        cache_file_name=str(path),
        load_from_cache_file=False,
        # The default fingerprint would pickle the packer, which changes while it works.
        new_fingerprint=f"fewstep-{name}",
        desc=f"packing {name}",
    )
    return packer.report()
