"""What rows must have in common to compare: plain values, their hash, and in what two of them differ."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

HASH_DIGITS = 12


def canonical_json(values: Any) -> str:
    """JSON with sorted keys and no white space: one text for equal values.

    Raises ``ValueError`` for what JSON does not know, NaN and infinities included.
    """
    try:
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"{error}: expected plain numbers, strings, lists and dictionaries") from None


def hash_of(values: Any) -> str:
    """12 hex digits of SHA-256 of the canonical JSON of plain values."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:HASH_DIGITS]


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """In what two protocols differ: "scorer.dtype: 'float32' against 'float16'"."""
    lines = []
    for name in sorted({*first, *second}):
        ours, theirs = first.get(name), second.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            lines += [f"{name}.{line}" for line in differences(ours, theirs)]
        elif ours != theirs:
            lines.append(f"{name}: {ours!r} against {theirs!r}")
    return lines
