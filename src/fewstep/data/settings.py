"""Which text to train on, and how it is cut into blocks."""

from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError

SMALLEST_VOCABULARY = 257
"""256 bytes and the end-of-text token: fewer cannot spell every text."""


@dataclass(frozen=True)
class CorpusSettings:
    """Where the text comes from and how it is cut into blocks.

    Args:
        source: ``sotu`` (built in), ``grammar`` or ``grammar:N`` (sentences of N words whose law is known exactly), a
            .txt, .jsonl, .json, .csv, .tsv or .parquet file, also compressed, a folder of such files, the dotted path
            of a function that yields documents (``my_pkg.my_documents``), or a hub data set (``owner/name`` or
            ``owner/name:config``).
        text_field: column or dotted path (``meta.body``) of the text in records; .txt files have no fields.
        tokenizer: a folder or a hub name of a transformers tokenizer; None trains a byte-level BPE on the train split.
        vocab_size: number of tokens of the trained BPE, end-of-text included; not used when ``tokenizer`` is given.
        block_size: tokens in a block (L).
        pack: True joins documents end to end and cuts; False starts every document in a block of its own and pads.
        validation_fraction: share of the documents that is held out, strictly between 0 and 1.
        streaming: True reads the train split as it goes instead of preparing it on disk.
        max_documents: use at most this many documents of the source, from its beginning; None uses all.
        cache_dir: folder for prepared corpora; ``~`` stands for the home folder.

    Raises ``UserError`` for a value out of its range.
    """

    source: str = "sotu"
    text_field: str = "text"
    tokenizer: str | None = None
    vocab_size: int = 2048
    block_size: int = 32
    pack: bool = True
    validation_fraction: float = 0.05
    streaming: bool = False
    max_documents: int | None = None
    cache_dir: str = "~/.cache/fewstep"

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise UserError("source is empty: give 'sotu', 'grammar', a file, a folder or a hub data set name")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"validation_fraction is {self.validation_fraction}: it must lie strictly between 0 and 1, such as 0.05"
            )
        if self.block_size < 1:
            raise UserError(f"block_size is {self.block_size}: a block needs at least 1 token")
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(f"max_documents is {self.max_documents}: give a number above 0, or leave it out to use all")
        if self.tokenizer is None and self.vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"vocab_size is {self.vocab_size}: a byte-level BPE needs at least {SMALLEST_VOCABULARY} "
                "(256 bytes and the end-of-text token)"
            )

    @property
    def cache_folder(self) -> Path:
        """``cache_dir`` with the home folder filled in."""
        return Path(self.cache_dir).expanduser()
