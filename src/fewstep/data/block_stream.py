"""Train blocks packed while their documents are being read, with exact resume."""

import copy
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from fewstep.data.corpus import text_digest
from fewstep.data.packing import BlockPacker, make_packer
from fewstep.data.reading import clean_document, missing_field
from fewstep.data.settings import CorpusSettings
from fewstep.data.tokenizer import DocumentEncoder, tokenizer_fingerprint
from fewstep.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DOCUMENTS_AT_ONCE = 16


def _beginning() -> dict[str, Any]:
    """The snapshot of a stream of which nothing has been read."""
    return {"blocks": 0, "epoch": 0, "source": None, "rest_ids": [], "rest_bytes": []}


def stream_texts(documents: Any, settings: CorpusSettings) -> Iterator[str]:
    """The cleaned texts of a stream of records.

    Raises:
        UserError: a record without the text field, or a source that cannot be read on.
    """
    from datasets.exceptions import DatasetsError

    try:
        for record in documents:
            if settings.text_field not in record:
                raise UserError(missing_field(settings.source, settings.text_field, list(record)))
            text = record[settings.text_field]
            if text is not None and not isinstance(text, str):
                kind = type(text).__name__
                raise UserError(f"{settings.source}: field '{settings.text_field}' is {kind}, expected text")
            yield clean_document(text)
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(f"source {settings.source} cannot be read on ({first_line(error, 160)})") from error


class BlockStream(IterableDataset):
    """Train blocks without end, packed from a stream of documents; rows as in :class:`PreparedCorpus`.

    Documents come in the source's order, from the beginning again when it ends, less those that are empty or held out
    for validation. ``index`` counts the blocks of this process. Processes share the documents by
    ``datasets.distributed.split_dataset_by_node``, and workers of a DataLoader share the source's files.
    """

    def __init__(
        self,
        documents: Any,
        tokenizer: "PreTrainedTokenizerFast",
        settings: CorpusSettings,
        held_out: frozenset[int],
        rank: int = 0,
        world_size: int = 1,
        history_blocks: int = 8192,
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        self._documents = split_dataset_by_node(documents, rank=rank, world_size=world_size)
        self._tokenizer, self._settings, self._held_out = tokenizer, settings, held_out
        self._rank, self._world_size, self._history_blocks = rank, world_size, history_blocks
        self._identity = f"{tokenizer_fingerprint(tokenizer)}/{settings.block_size}/{settings.pack}/{world_size}"
        self._start = _beginning()
        self._skip = 0
        self._yielded = 0
        self._history: deque[dict[str, Any]] = deque([self._start])

    def state_dict(self, blocks: int | None = None) -> dict[str, Any]:
        """Where this process stands after ``blocks`` blocks (default: all yielded so far), in plain Python values.

        A loader may have fetched ahead, so name the number of blocks that were really used.

        Raises:
            UserError: ``blocks`` not yet yielded, or longer ago than ``history_blocks``. With DataLoader workers the
                blocks are yielded in their processes: use no workers, or a loader that asks them for their state.
        """
        wanted = self._yielded if blocks is None else blocks
        past = [snapshot for snapshot in self._history if snapshot["blocks"] <= wanted]
        if wanted > self._yielded or not past:
            raise UserError(
                f"the stream cannot tell its state after {wanted} blocks: this process yielded {self._yielded} and "
                f"remembers from {self._history[0]['blocks']} on; to resume exactly, use num_workers 0"
            )
        return {"identity": self._identity, "rank": self._rank, "yielded": wanted, "snapshot": copy.deepcopy(past[-1])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration begin where ``state`` was taken.

        The state of another rank holds the number of blocks only: then the stream is read from its beginning and the
        blocks already used are passed over, which is exact too but takes time.

        Raises:
            UserError: the state is of another tokenizer, block size, packing or number of processes.
        """
        if state["identity"] != self._identity:
            raise UserError("the stream's saved state is of another tokenizer, block_size, pack or number of processes")
        self._start = copy.deepcopy(state["snapshot"]) if state["rank"] == self._rank else _beginning()
        self._skip = state["yielded"] - self._start["blocks"]
        self._yielded, self._history = state["yielded"], deque([self._start])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        skip, self._yielded = self._skip, self._start["blocks"]
        self._history = deque([self._start])
        for row in self._rows():
            self._yielded += 1
            if skip:
                skip -= 1
                continue
            yield row

    def _rows(self) -> Iterator[dict[str, Any]]:
        settings, start = self._settings, self._start
        encoder = DocumentEncoder(self._tokenizer)
        packer = make_packer(self._tokenizer, settings.block_size, settings.pack)
        packer.blocks = start["blocks"]
        packer.rest_ids = np.array(start["rest_ids"], np.int32)
        packer.rest_bytes = np.array(start["rest_bytes"], np.int32)
        epoch, source_state = start["epoch"], start["source"]
        while True:
            # A stream that has been resumed would resume again when read again: every pass takes a fresh copy.
            documents = copy.deepcopy(self._documents)
            if source_state is not None:
                documents.load_state_dict(source_state)
            texts, found = self._texts(documents), source_state is not None
            while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
                found = True
                first, blocks = packer.blocks, packer.add(encoder.encode(batch))
                for row in range(len(blocks)):
                    yield {
                        "index": first + row,
                        "input_ids": blocks.ids[row],
                        "length": int(blocks.length[row]),
                        "num_bytes": int(blocks.num_bytes[row]),
                    }
                self._remember(packer, epoch, documents.state_dict())
            if not found:
                if get_worker_info() is not None:
                    return  # more workers than files: this one has no share
                raise UserError(f"source {settings.source} gives process {self._rank} no train documents")
            epoch, source_state = epoch + 1, None

    def _texts(self, documents: Any) -> Iterator[str]:
        for text in stream_texts(documents, self._settings):
            if text and text_digest(text) not in self._held_out:
                yield text

    def _remember(self, packer: BlockPacker, epoch: int, source: dict[str, Any]) -> None:
        self._history.append(
            {
                "blocks": packer.blocks,
                "epoch": epoch,
                "source": copy.deepcopy(source),
                "rest_ids": packer.rest_ids.tolist(),
                "rest_bytes": packer.rest_bytes.tolist(),
            }
        )
        while len(self._history) > 2 and self._history[1]["blocks"] <= packer.blocks - self._history_blocks:
            self._history.popleft()
