"""Text for the trainer: blocks on disk or from a stream, in an order that a resumed run repeats."""

from typing import TYPE_CHECKING, Any, ClassVar

from torch.utils.data import DataLoader

from fewstep.data import (
    CorpusSettings,
    PreparedCorpus,
    StreamingCorpus,
    collate,
    prepare_corpus,
    streaming_corpus,
)
from fewstep.training.step_data import StepDataModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TextDataModule(StepDataModule):
    """Packed blocks of a corpus in batches.

    Args:
        source: ``sotu`` or ``grammar`` (built in), a .txt, .jsonl or .parquet file, a folder of them, or the name of
            a hub data set.
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

    example_name: ClassVar[str] = "blocks"
    validation_name: ClassVar[str] = "num_validation_blocks"

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
        super().__init__(batch_size, num_validation_blocks, num_workers, seed)
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

    def report(self) -> str:
        """What became of the documents."""
        return str(self.corpus.report)

    def train_dataloader(self) -> DataLoader:
        """Batches from where the run stands to its end. Raises ``UserError`` for too little text."""
        corpus, (rank, world_size) = self.corpus, self.ranks()
        if isinstance(corpus, StreamingCorpus):
            if world_size > 1:  # the corpus was opened for its tokenizer before the processes were known
                corpus = self._corpus = streaming_corpus(self.settings, rank, world_size)
            if self._restored_stream is not None:
                corpus.train.load_state_dict(self._restored_stream)
            return DataLoader(corpus.train, self.batch_size, collate_fn=collate, num_workers=0)
        sampler = self.step_batches(len(corpus.train))
        return DataLoader(corpus.train, batch_sampler=sampler, collate_fn=collate, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """The first ``num_validation_blocks`` held-out blocks, in order; each process sees its share of batches."""
        rows = self.corpus.validation
        return DataLoader(rows, batch_sampler=self.held_out_batches(len(rows)), collate_fn=collate)

    def state_dict(self) -> dict[str, Any]:
        """Where a stream stands; blocks on disk need only the trainer's step."""
        if isinstance(self._corpus, StreamingCorpus):
            return {"stream": self._corpus.train.state_dict(self.batches_done() * self.batch_size)}
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a stream's place, for the next ``train_dataloader``."""
        self._restored_stream = state_dict.get("stream")
