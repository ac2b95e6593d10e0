"""Data modules: batches counted in optimizer steps, in an order that a resumed run repeats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.data.batches import StepBatchSampler, collate
from fewstep.data.corpus import PreparedCorpus, prepare_corpus
from fewstep.data.sources import CorpusSettings
from fewstep.data.stream import BlockStream
from fewstep.data.tokenizer import tokenizer_fingerprint
from fewstep.errors import UserError
from fewstep.model import Identity, Kind, SavedModel

Batch = dict[str, Tensor]
"""A batch: ``index`` (B,), its rows of the split, and its content."""


class StepDataModule(LightningDataModule):
    """Base of the data modules: which rows a process sees at which step.

    A subclass sets ``kind`` (of the models on it), ``example_name`` (a row) and ``unit`` (what is counted), and defines
    the loaders and what raises here. Raises ``UserError`` for numbers out of range.
    """

    kind: ClassVar[Kind]
    example_name: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, batch_size: int, num_validation: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1 or num_validation < 1 or num_workers < 0:
            raise UserError(
                f"batch_size {batch_size}, num_validation_{self.example_name} {num_validation}, num_workers "
                f"{num_workers}: expected at least 1, at least 1, and at least 0"
            )
        self.batch_size = batch_size
        self.num_validation = num_validation
        self.num_workers = num_workers
        self.seed = seed
        self._num_held_out_batches = 0

    def report(self) -> str:
        """What the data are, in a line or two."""
        raise NotImplementedError

    def new_model(self) -> SavedModel:
        """A model of these data without parts, for the first stages."""
        raise NotImplementedError

    def check_model(self, identity: Identity, path: str) -> None:
        """Raise ``UserError`` if the model at ``path`` is of other data."""
        raise NotImplementedError

    def describe(self, identity: Identity) -> Identity:
        """``identity`` with the fields of these data's records."""
        return identity

    def fingerprints(self) -> dict[str, str]:
        """Digests of what the settings of the data name, by option."""
        return {}

    def load_model(self, path: str, *needed: str, allow: Sequence[str] = ()) -> SavedModel:
        """The frozen model that a stage builds on. Raises ``UserError`` for a missing part or a model of other data."""
        model = SavedModel.from_pretrained(path, allow=allow, kind=self.kind)
        model.require(*needed, source=path)
        self.check_model(model.identity, path)
        for part in model.parts().values():
            part.requires_grad_(False)
        return model

    def units_in(self, batch: Batch) -> Tensor | int:
        """How many of ``unit`` a batch holds."""
        return len(batch["index"])

    def step_loader(self, rows: Any, collate_rows: Callable[..., Batch]) -> DataLoader:
        """A loader of the train batches from the current step to the end of the run.

        Lightning ends a pass where ``limit_train_batches`` says, and uses the loader again.
        """
        assert self.trainer is not None
        rank, world_size = self.ranks()
        accumulated = self.trainer.accumulate_grad_batches
        sampler = StepBatchSampler(
            len(rows),
            self.batch_size,
            num_batches=self.trainer.max_steps * accumulated,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            batches_per_step=accumulated,
            start=self.batches_done,
        )
        return DataLoader(rows, batch_sampler=sampler, collate_fn=collate_rows, num_workers=self.num_workers)

    def held_out_batches(self, num_rows: int) -> list[list[int]]:
        """Row numbers of this rank's validation batches: of batches in order, rank r of W takes r, r + W, ...

        All get the same number, or an all-reduce would deadlock: who runs short repeats the last, with weight 0.
        """
        rank, world_size = self.ranks()
        rows = list(range(min(num_rows, self.num_validation)))
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        self._num_held_out_batches = len(batches)
        numbers = range(rank, -(-len(batches) // world_size) * world_size, world_size)
        return [batches[min(number, len(batches) - 1)] for number in numbers]

    def held_out_weight(self, batch_idx: int, size: int) -> int:
        """Weight of a validation batch in the mean over all ranks: its ``size``, or 0.

        Times W, since Lightning averages the weights over ranks in integers, rounding down.
        """
        rank, world_size = self.ranks()
        return size * world_size if batch_idx * world_size + rank < self._num_held_out_batches else 0

    def ranks(self) -> tuple[int, int]:
        """Rank and world size; (0, 1) without a trainer."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def batches_done(self) -> int:
        """Batches that this process has trained on."""
        assert self.trainer is not None
        return self.trainer.global_step * self.trainer.accumulate_grad_batches


@dataclass(eq=False, repr=False)
class TextDataModule(CorpusSettings, StepDataModule):
    """Packed blocks of a corpus in batches; its settings are those of the corpus, and these.

    Args:
        tokenizer: folder or hub name; None trains a byte-level BPE, or takes that of the model a later stage builds on.
        batch_size: blocks in a batch of one process.
        num_validation_blocks: at most this many blocks are validated on.
        num_workers: processes that load batches; 0 loads in the training process.
        seed: decides the order of the blocks.
    """

    kind: ClassVar[Kind] = "text"
    example_name: ClassVar[str] = "blocks"
    unit: ClassVar[str] = "tokens"

    batch_size: int = 64
    num_validation_blocks: int = 512
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        StepDataModule.__init__(self, self.batch_size, self.num_validation_blocks, self.num_workers, self.seed)
        self.settings = CorpusSettings(**{field.name: getattr(self, field.name) for field in fields(CorpusSettings)})
        self._corpus: PreparedCorpus | None = None
        self._restored_stream: dict[str, Any] | None = None

    @property
    def corpus(self) -> PreparedCorpus:
        """The corpus, prepared on first use; later runs and other processes find it on disk."""
        if self._corpus is None:
            self._corpus = prepare_corpus(self.settings)
        return self._corpus

    def report(self) -> str:
        """What became of the documents."""
        return str(self.corpus.report)

    def fingerprints(self) -> dict[str, str]:
        """Of the blocks and the tokenizer."""
        tokenizer = tokenizer_fingerprint(self.corpus.tokenizer)
        return {"data.source": self.corpus.content_digest, "data.tokenizer": tokenizer}

    def new_model(self) -> SavedModel:
        """A text model without parts."""
        tokenizer = self.corpus.tokenizer
        blocks = self.settings.blocks or "packed"
        counts: tuple[int, ...] = ()
        if blocks == "documents" and self.prompt_field is None:
            counts = self.corpus.length_counts()
        identity = Identity(self.block_size, tokenizer_fingerprint(tokenizer), blocks, counts, source=self.source)
        return SavedModel(tokenizer, self.describe(identity))

    def describe(self, identity: Identity) -> Identity:
        """``identity`` with the fields of text and prompt."""
        return replace(identity, text_field=self.text_field, prompt_field=self.prompt_field)

    def check_model(self, identity: Identity, path: str) -> None:
        """Raise ``UserError`` for other blocks or another tokenizer."""
        for name in ("block_size", "blocks"):
            theirs, ours = getattr(identity, name), getattr(self, name)
            if theirs != ours:
                raise UserError(f"{path} was trained with {name} {theirs}, not {ours}: pass --data.{name}={theirs}")
        if identity.blocks == "documents" and bool(identity.length_counts) == (self.prompt_field is not None):
            does = "draws the lengths of its texts" if identity.length_counts else "writes the ends that fill a block"
            raise UserError(
                f"{path} {does}, as models of {'text' if identity.length_counts else 'pairs'} do: train its "
                "autoencoder on these data too"
            )
        if identity.tokenizer_fingerprint != tokenizer_fingerprint(self.corpus.tokenizer):
            raise UserError(
                f"the data's tokenizer is not the one of {path}: leave --data.tokenizer out, or point it there"
            )

    def units_in(self, batch: Batch) -> Tensor | int:
        """Tokens of a batch that count."""
        return batch["length"].sum()

    def train_dataloader(self) -> DataLoader:
        """Batches from the current step to the end. Raises ``UserError`` for too little text."""
        corpus, (rank, world_size) = self.corpus, self.ranks()
        if isinstance(corpus.train, BlockStream):
            if world_size > 1:  # it was opened for its tokenizer before the ranks were known
                corpus = self._corpus = prepare_corpus(self.settings, rank, world_size)
            if self._restored_stream is not None:
                corpus.train.load_state_dict(self._restored_stream)
                self._restored_stream = None
            corpus.train.used = self.blocks_done
            return DataLoader(corpus.train, self.batch_size, collate_fn=collate)
        return self.step_loader(corpus.train, collate)

    def val_dataloader(self) -> DataLoader:
        """This rank's share of the first ``num_validation_blocks`` held-out blocks."""
        rows = self.corpus.validation
        return DataLoader(rows, batch_sampler=self.held_out_batches(len(rows)), collate_fn=collate)

    def blocks_done(self) -> int:
        """Blocks that this process has trained on."""
        return self.batches_done() * self.batch_size

    def state_dict(self) -> dict[str, Any]:
        """The position in a stream; blocks on disk need only the trainer's step."""
        if self._corpus is not None and self.streaming:
            return {"stream": self._corpus.train.state_dict(self.blocks_done())}
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a stream's position, for the next ``train_dataloader``."""
        self._restored_stream = state_dict.get("stream")
