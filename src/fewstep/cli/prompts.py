"""What a text begins with or is built around: the options of ``fewstep sample`` that say so, and files of prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveFloat, PositiveInt

from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.prompts import GapTokens

FIELDS = ("prompt", "infill")


@dataclass(kw_only=True)
class PromptOptions:
    """What is known of a text.

    Args:
        prompt: the beginning of every text.
        infill: a text with gaps to fill in, each marked [..], as in "The [..] sat on [..].".
        prompts: a .jsonl file of objects with a text as "prompt" or as "infill", one a line; num_samples texts are
            written for each.
        gap_tokens: tokens of a gap, a number or the least and the most, as in 2-6.
        max_new_tokens: tokens to write after the prompt; left out, as many as the block has room for.
        commit_tokens: tokens written at a time, each time with those before them known; left out, a whole block.
        guidance: scale of classifier-free guidance on what is known; 1 for none.
    """

    prompt: str | None = None
    infill: str | None = None
    prompts: Path | None = None
    gap_tokens: str | int = "1-8"
    max_new_tokens: PositiveInt | None = None
    commit_tokens: PositiveInt | None = None
    guidance: PositiveFloat = 1.0


@dataclass(frozen=True)
class Given:
    """What is known of one text: a prompt, an infill or neither."""

    prompt: str | None = None
    infill: str | None = None


def given_texts(options: PromptOptions) -> list[Given]:
    """What the texts are to begin with or to be built around, one for each that the options name.

    Raises ``UserError`` for more than one of prompt, infill and prompts, and for a file that is broken.
    """
    chosen = [name for name in (*FIELDS, "prompts") if getattr(options, name) is not None]
    if len(chosen) > 1:
        raise UserError(f"--{' and --'.join(chosen)} are given: choose one")
    if options.guidance != 1 and not chosen:
        raise UserError(f"--guidance is {options.guidance}: it leans on what is known, so give a --prompt too")
    if options.prompts is not None:
        return list(read_prompts(options.prompts))
    return [Given(options.prompt, options.infill)]


def read_prompts(file: Path) -> Iterator[Given]:
    """The prompts of a file. Raises ``UserError``, with the line's number, for a line that is not one."""
    from fewstep.data.readers import READERS

    is_empty = True
    try:
        with file.open("rb") as stream:
            for place, row in READERS[".jsonl"](stream, f"{file},", "prompt"):
                is_empty = False
                texts = {name: row[name] for name in FIELDS if name in row} if isinstance(row, dict) else {}
                if len(texts) != 1 or not all(isinstance(text, str) for text in texts.values()):
                    raise UserError(f'{place}: expected an object with a text as "prompt" or as "infill"')
                yield Given(**texts)
    except OSError as error:
        raise UserError(f"--prompts {file}: {error.strerror}: give a .jsonl file") from None
    if is_empty:
        raise UserError(f'--prompts {file} has no line: give one object a line, such as {{"prompt": "The cat"}}')


def parse_gap_tokens(text: str | int) -> "GapTokens":
    """``N`` or ``LEAST-MOST``. Raises ``UserError`` for anything else."""
    from fewstep.prompts import check_gap_tokens

    numbers = str(text).split("-")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise UserError(f"--gap_tokens {text!r}: expected a number of tokens, or the least and the most, as in 2-6")
    gap_tokens: GapTokens = int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))
    check_gap_tokens(gap_tokens)
    return gap_tokens
