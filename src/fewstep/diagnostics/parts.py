"""A decoder that is asked for a few examples at a time, where the output of all of them would not fit the memory.

B examples, L tokens, V vocabulary. With 50,000 tokens the logits of 64 examples of 32 positions take 0.4 GB in float32,
and a diagnostic holds several of them; what it keeps of them is a number an example.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.derivatives import Decode


class DecodeInParts:
    """``decode(z, *context)`` for at most ``examples_at_once`` rows of latents ``z`` (B, ...) at a time.

    Each of ``context`` is (B, ...) and belongs to the examples, row by row. It is a :data:`Decode` itself; the
    functions of this room ask it for one part of the examples after the other (:func:`in_parts`), so that they hold the
    output of a part only. Raises ValueError for fewer than 1 example at once.
    """

    def __init__(self, decode: Callable[..., Tensor], examples_at_once: int, context: Sequence[Tensor] = ()) -> None:
        if examples_at_once < 1:
            raise ValueError(f"examples_at_once is {examples_at_once}: expected at least 1.")
        self.decode = decode
        self.examples_at_once = examples_at_once
        self.context = tuple(context)

    def __call__(self, z: Tensor) -> Tensor:
        """The outputs (B, ...) of all of ``z`` (B, ...), joined."""
        return torch.cat([decode(z[rows]) for decode, rows in self.parts(len(z))])

    def parts(self, count: int) -> Iterator[tuple[Decode, slice]]:
        """A decoder for every few of ``count`` examples, with the rows that it is for."""
        for start in range(0, count, self.examples_at_once):
            rows = slice(start, min(start + self.examples_at_once, count))
            yield self._part(tuple(value[rows] for value in self.context)), rows

    def _part(self, context: tuple[Tensor, ...]) -> Decode:
        return lambda z: self.decode(z, *context)


def in_parts(decode: Decode, function: Callable[..., Any], *rows: Tensor | None) -> Any:
    """``function(decode, *rows)``, for one part of the examples after the other where ``decode`` is in parts.

    ``rows`` are (B, ...) each, or None, which stays None; ``function`` gives a tensor (B, ...), or a tuple of such. An
    example's result must depend on its own row alone, which makes the joined results those of all examples at once (but
    for the last bit, where the processor's vectors do not divide an example's numbers).
    """
    if not isinstance(decode, DecodeInParts):
        return function(decode, *rows)
    count = next(len(value) for value in rows if value is not None)
    found = [
        function(part, *(None if value is None else value[places] for value in rows))
        for part, places in decode.parts(count)
    ]
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def read_tokens(decode: Decode, z: Tensor) -> Tensor:
    """The tokens (B, L) int64 of the highest logits that ``decode`` gives latents ``z`` (B, ...)."""
    return in_parts(decode, lambda part, rows: part(rows).argmax(-1), z)
