"""Ids back to text. B samples, L tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def decode_blocks(tokenizer: "PreTrainedTokenizerFast", ids: Tensor) -> tuple[str, ...]:
    """Text of each row of ``ids`` (B, L): the whole block, an end-of-text shown as an empty line between documents."""
    return tuple("\n\n".join(filter(str.strip, decode_documents(tokenizer, row))) for row in ids.tolist())


def decode_documents(tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int]) -> list[str]:
    """The texts of one block, split at every end-of-text: one more than it has of them, some may be empty."""
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.eos_token_id:
            documents.append([])
        else:
            documents[-1].append(token)
    return [
        str(tokenizer.decode(document, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for document in documents
    ]
