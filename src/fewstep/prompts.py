"""Texts to continue and texts with gaps, as tokens of which some are known. L tokens in a block."""

import unicodedata
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.data.tokenizer import DocumentEncoder
from fewstep.errors import UserError
from fewstep.shapes import rand

GAP = "[..]"
"""Marks a gap in a text to fill in."""
UNKNOWN = -1
"""Stands for a token that is to be written."""
ALLOWED_CONTROLS = "\n\t"

GapTokens = int | tuple[int, int]
"""How many tokens a gap has: a number, or the least and the most, between which it is drawn."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A text that is partly written: ``ids``, ``UNKNOWN`` at what is to be filled in, and its ``length`` in the end.

    After ``ids`` the text goes on to ``length`` tokens. ``fill`` stands behind it in a block.
    """

    ids: tuple[int, ...] = ()
    length: int
    fill: int = UNKNOWN


class DraftMaker:
    """Turns texts into drafts for a model of blocks of ``block_size`` tokens.

    ``is_document``: a block is one document, filled with ends of text. Spaces before a gap and at the end of a prompt
    are left out, since a token begins with its space.
    """

    def __init__(self, tokenizer: Any, block_size: int, *, is_document: bool) -> None:
        self.encoder = DocumentEncoder(tokenizer)
        self.end_id = int(tokenizer.eos_token_id)
        self.block_size = block_size
        self.is_document = is_document

    def continued(self, prompt: str, max_new_tokens: int | None) -> Draft:
        """A draft that begins with ``prompt`` and has up to ``max_new_tokens`` more; None: what the block has room for.

        Raises ``UserError`` for a prompt that is empty, that the tokenizer cannot write, or that leaves no room.
        """
        ids = self.tokens(prompt.rstrip(" "), "prompt")
        if not ids:
            raise UserError("the prompt is empty: give the text to continue, or leave it out")
        if max_new_tokens is None and len(ids) >= self.block_size:
            raise UserError(
                f"the prompt has {len(ids)} tokens and the model's block {self.block_size}: give a shorter one, or "
                "max_new_tokens, the number of tokens to write after it"
            )
        length = self.block_size if max_new_tokens is None else len(ids) + max_new_tokens
        return Draft(ids=tuple(ids), length=length)

    def filled_in(self, template: str, gap_tokens: GapTokens, generator: torch.Generator) -> Draft:
        """A draft of ``template``, whose gaps ``GAP`` have ``gap_tokens`` each.

        Raises ``UserError`` for a template without a gap or without text, or that the tokenizer cannot write, one that
        is longer than a block, and for numbers that a gap cannot have.
        """
        pieces = template.split(GAP)
        if len(pieces) < 2 or not any(piece.strip() for piece in pieces):
            raise UserError(f"infill {shown(template)}: expected text with at least one gap, marked {GAP}")
        low, high = (gap_tokens, gap_tokens) if isinstance(gap_tokens, int) else gap_tokens
        if not 1 <= low <= high:
            raise UserError(f"gap_tokens is {gap_tokens}: expected a number of at least 1, or the least and the most")
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if number:
                size = low + int((high - low + 1) * rand((1,), torch.empty(0), generator))
                ids += [UNKNOWN] * min(size, high)
            ids += self.tokens(piece.rstrip(" ") if number < len(pieces) - 1 else piece, "infill")
        if self.is_document:
            ids.append(self.end_id)
        if len(ids) > self.block_size:
            raise UserError(
                f"infill {shown(template)} has {len(ids)} tokens with its gaps, the model's block {self.block_size}: "
                "give a shorter text or shorter gaps"
            )
        return Draft(ids=tuple(ids), length=len(ids), fill=self.end_id if self.is_document else UNKNOWN)

    def tokens(self, text: str, name: str) -> list[int]:
        """Tokens of ``text``. Raises ``UserError``, naming the option ``name``, for others than text."""
        for character in text:
            if unicodedata.category(character) in ("Cc", "Cs") and character not in ALLOWED_CONTROLS:
                raise UserError(f"{name} {shown(text)}: {character!a} is no text or a control character: leave it out")
        (document,) = self.encoder.encode([text])
        if document.unknown_tokens or document.lost_bytes:
            raise UserError(f"{name} {shown(text)}: the model's tokenizer cannot write all of its characters")
        return [int(token) for token in document.ids]


def shown(text: str, most: int = 60) -> str:
    """``text`` in quotes on one line, cut where it is long."""
    return ascii(text if len(text) <= most else text[:most] + "...")
