"""Train blocks packed while their documents are being read, with exact resume."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset

from fewstep.data.packing import BlockPacker
from fewstep.data.sources import CorpusSettings, Source, text_digest
from fewstep.data.tokenizer import tokenizer_fingerprint
from fewstep.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DOCUMENTS_AT_ONCE = 16
_BEGINNING: dict[str, Any] = {"blocks": 0, "source": None, "rest_ids": [], "rest_bytes": []}
"""The snapshot of a stream of which nothing has been read."""
_SNAPSHOTS = 4096
"""How many positions a stream remembers, one for every 16 documents."""


class BlockStream(IterableDataset):
    """Train blocks without end, packed from a stream of documents; rows as in :class:`PreparedCorpus`.

    Documents come in the source's order, from the beginning again when it ends, less those that are empty or held out
    for validation. ``index`` counts the blocks of this process; processes share the documents by
    ``datasets.distributed.split_dataset_by_node``. A pass begins behind the blocks that ``used`` counts, if it is set.
    """

    used: Callable[[], int] | None = None

    def __init__(
        self,
        source: Source,
        tokenizer: "PreTrainedTokenizerFast",
        settings: CorpusSettings,
        held_out: frozenset[int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        self._records = split_dataset_by_node(source.records, rank=rank, world_size=world_size)
        self._tokenizer, self._settings, self._held_out, self._rank = tokenizer, settings, held_out, rank
        tokens = tokenizer_fingerprint(tokenizer)
        self._identity = f"{source.fingerprint}/{tokens}/{settings.block_size}/{settings.blocks}/{world_size}"
        self._begin(_BEGINNING, 0)

    def _begin(self, snapshot: dict[str, Any], blocks: int) -> None:
        """Let the next iteration read from ``snapshot`` on and yield the blocks from number ``blocks`` on."""
        self._start, self._skip = snapshot, blocks - snapshot["blocks"]
        self._yielded, self._history = blocks, deque([snapshot], maxlen=_SNAPSHOTS)

    def state_dict(self, blocks: int | None = None) -> dict[str, Any]:
        """The position of this process after ``blocks`` blocks (default: all yielded so far), in plain Python values.

        A loader may have fetched ahead, so give the number of blocks that were used. Raises ``UserError`` for blocks
        not yet yielded (those of a DataLoader's workers never are, here), or forgotten.
        """
        used = self._yielded if blocks is None else blocks
        past = [snapshot for snapshot in self._history if snapshot["blocks"] <= used]
        if used > self._yielded or not past:
            raise UserError(
                f"the stream does not know its state after {used} blocks: this process yielded {self._yielded} and "
                f"remembers from {self._history[0]['blocks']} on; to resume exactly, use num_workers 0"
            )
        return {"identity": self._identity, "rank": self._rank, "yielded": used, "snapshot": copy.deepcopy(past[-1])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration begin where ``state`` was taken.

        Of the state of another rank the number of blocks is used: the stream is read from its beginning and they are
        skipped, which is exact too but takes time. Raises ``UserError`` for the state of another stream.
        """
        if state["identity"] != self._identity:
            raise UserError(
                "the stream's saved state is of another source, tokenizer, block_size, blocks or number of processes"
            )
        self._begin(state["snapshot"] if state["rank"] == self._rank else _BEGINNING, state["yielded"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.used is not None:
            self.load_state_dict(self.state_dict(self.used()))
        first = self._start["blocks"] + self._skip
        self._begin(self._start, first)
        self._yielded = self._start["blocks"]
        for row in self._rows():
            self._yielded += 1
            if self._yielded > first:
                yield row

    def _rows(self) -> Iterator[dict[str, Any]]:
        settings, start = self._settings, copy.deepcopy(self._start)
        packer = BlockPacker(self._tokenizer, settings.block_size, one_document=settings.one_document)
        packer.report.blocks = start["blocks"]
        packer.rest_ids, packer.rest_bytes = (np.array(start[name], np.int32) for name in ("rest_ids", "rest_bytes"))
        position = start["source"]
        while True:
            # A stream that has been resumed would resume again when read again: every pass takes a fresh copy.
            records = copy.deepcopy(self._records)
            if position is not None:
                records.load_state_dict(position)
            texts, has_documents = self._texts(records), position is not None
            while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
                has_documents = True
                blocks = packer.add_texts(batch)
                for values in zip(*blocks.values(), strict=True):
                    yield dict(zip(blocks, values, strict=True))
                rest = {"rest_ids": packer.rest_ids.tolist(), "rest_bytes": packer.rest_bytes.tolist()}
                source = copy.deepcopy(records.state_dict())
                self._history.append({"blocks": packer.report.blocks, "source": source, **rest})
            if not has_documents:
                raise UserError(f"source {settings.source} gives process {self._rank} no train documents")
            position = None

    def _texts(self, records: Any) -> Iterator[str]:
        from datasets.exceptions import DatasetsError

        try:
            for record in records:
                text = record["text"]
                if text and record.get("split") != "validation" and text_digest(text) not in self._held_out:
                    yield text
        except (DatasetsError, OSError, ValueError) as error:
            raise UserError(f"source {self._settings.source} cannot be read on ({first_line(error, 160)})") from error
