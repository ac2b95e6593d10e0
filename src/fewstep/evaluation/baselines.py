"""The texts that samples are compared with. N blocks, L tokens, T tokens of train text."""

import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fewstep.data.batches import collate, spread_rows
from fewstep.data.tokenizer import DocumentEncoder, decode_documents
from fewstep.errors import UserError
from fewstep.types import TokenBatch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast


def held_out_blocks(validation: "Dataset", num_blocks: int) -> TokenBatch:
    """``num_blocks`` blocks spread evenly over a split; the same split and number give the same blocks.

    ``mask`` is true at the tokens that count, which end with the end-of-text of a block of one document. Raises
    ``UserError`` where the split has fewer.
    """
    if not 1 <= num_blocks <= len(validation):
        raise UserError(
            f"{num_blocks} held-out blocks asked for, the validation split has {len(validation)}: "
            "ask for no more than that, and at least 1"
        )
    batch = collate([validation[int(row)] for row in spread_rows(len(validation), num_blocks)])
    return TokenBatch(batch["ids"], torch.arange(batch["ids"].shape[1]) < batch["length"][:, None])


def train_stream(train: "Dataset") -> Tensor:
    """The tokens of a packed split in their order, (T,) int64, padding left out.

    Blocks are cut from one stream, or from documents that end with an end-of-text, so what follows the last token of a
    full block is the first of the next: copies across the cut are found too.
    """
    parts = [np.zeros(0, np.int64)]
    for rows in train.iter(4096):
        ids = np.asarray(rows["input_ids"], dtype=np.int64)
        parts.append(ids[np.arange(ids.shape[1]) < np.asarray(rows["length"])[:, None]])
    return torch.from_numpy(np.concatenate(parts))


def unigram_blocks(train: Tensor, num_blocks: int, block_size: int, generator: torch.Generator) -> TokenBatch:
    """Blocks (N, L) of tokens drawn independently, each as often as in the tokens ``train`` (T,)."""
    cumulative = torch.bincount(train).double().cumsum(0)
    u = torch.rand(num_blocks, block_size, generator=generator, dtype=torch.float64)
    ids = torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp(max=len(cumulative) - 1)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


def shuffled_blocks(
    tokens: TokenBatch,
    tokenizer: "PreTrainedTokenizerFast",
    generator: torch.Generator,
    given: Tensor | None = None,
) -> TokenBatch:
    """Every block with its words in random order: the words of real text without its grammar (N, L).

    A block is decoded, its words (between white space) change places, while white space and ends of text stay; then
    it is tokenised again. What no longer fits into L tokens is cut off; a block that came out shorter is padded, and
    ``mask`` is false there. Tokens that are ``given`` (N, L) stay.
    """
    encoder = DocumentEncoder(tokenizer)
    stays = torch.zeros_like(tokens.mask) if given is None else given
    ids = torch.where(stays, tokens.ids, int(tokenizer.pad_token_id))
    mask = tokens.mask & stays
    for row, (block, seen) in enumerate(zip(tokens.ids, tokens.mask & ~stays, strict=True)):
        documents = shuffle_words(decode_documents(tokenizer, block[seen].tolist()), generator)
        shuffled: list[int] = []
        for index, document in enumerate(encoder.encode(documents)):
            shuffled += ([int(tokenizer.eos_token_id)] if index else []) + document.ids.tolist()
        places = (~stays[row]).nonzero()[: len(shuffled), 0]
        ids[row, places] = torch.tensor(shuffled[: len(places)], dtype=ids.dtype)
        mask[row, places] = True
    return TokenBatch(ids, mask)


def shuffle_words(documents: list[str], generator: torch.Generator) -> list[str]:
    """The words of all ``documents`` in random order, in the places and between the white space of the old ones."""
    words = [word for document in documents for word in re.findall(r"\S+", document)]
    order = iter(torch.randperm(len(words), generator=generator).tolist())
    return [re.sub(r"\S+", lambda _: words[next(order)], document) for document in documents]
