"""A token as it looks in a text, by itself."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def token_text(tokenizer: "PreTrainedTokenizerFast", token: int) -> str:
    """The text of ``token`` behind another token, a space in front of it included; special tokens by their names.

    A token that holds a part of a character only shows U+FFFD in its place. Tokenizers that drop the space of a text's
    first word, or mark a word's continuation, do so at the first token: therefore the second of two is taken.
    """
    alone, twice = (
        str(tokenizer.decode([token] * count, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for count in (1, 2)
    )
    return twice[len(alone) :] or alone
