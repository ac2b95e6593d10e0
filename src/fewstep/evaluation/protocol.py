"""What must be equal before two perplexities may stand in one table: settings, stored and hashed into every result."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fewstep.errors import UserError
from fewstep.provenance import versions

HASH_DIGITS = 12
HASH_KEY, PROTOCOL_KEY = "protocol_hash", "protocol"
"""Where :meth:`ScoringProtocol.stamp` puts the hash and the protocol itself in a row."""


@dataclass(frozen=True)
class ScoringProtocol:
    """How text is made countable and scored (the points on which papers differ).

    ``scorer``: :meth:`fewstep.evaluation.scorers.Scorer.identity`. ``num_samples``: texts of one setting for each of
    ``seeds``. ``block_size``: tokens of the model in a text. ``end_of_text``: which tokens of a generated block count
    (:data:`WHOLE_BLOCK` or :data:`TO_FIRST_END`). ``versions``: of the packages that numbers depend on.
    ``yardsticks``: settings of the texts that stand beside the samples, the data that they come from included. All
    values are plain (fit for JSON); they are copied, so that nothing changes them later.
    Raises ``ValueError`` for a value that JSON does not know, NaN included, and for numbers below 1.
    """

    scorer: Mapping[str, Any]
    num_samples: int
    seeds: tuple[int, ...]
    block_size: int
    end_of_text: str
    versions: Mapping[str, str]
    yardsticks: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.block_size < 1 or not self.seeds:
            raise ValueError(
                f"{self.num_samples} samples of {self.block_size} tokens for seeds {tuple(self.seeds)}: expected at "
                "least 1 of each"
            )
        object.__setattr__(self, "seeds", tuple(self.seeds))
        for name in ("scorer", "versions", "yardsticks"):
            object.__setattr__(self, name, json.loads(canonical_json(getattr(self, name))))

    @property
    def hash(self) -> str:
        """12 hex digits of SHA-256 of the canonical JSON: equal exactly where all settings are."""
        return hash_of(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.loads(canonical_json(values))

    def stamp(self) -> dict[str, Any]:
        """What a row carries: its protocol and the hash of it."""
        return {HASH_KEY: self.hash, PROTOCOL_KEY: self.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ScoringProtocol":
        """The inverse of :meth:`to_dict`. Raises ``UserError`` where a setting is missing or unknown."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            differing = ", ".join(sorted(names ^ set(values)))
            raise UserError(f"protocol has missing or unknown settings ({differing}): it is of another fewstep version")
        return cls(**{**values, "seeds": tuple(values["seeds"])})


WHOLE_BLOCK = "every token of a block counts, ends of text among them"
TO_FIRST_END = "a block counts up to its first end of text, that included"


def protocol_versions() -> dict[str, str]:
    """Versions of what scores depend on: fewstep, torch, transformers, tokenizers and numpy."""
    return versions("transformers", "tokenizers", "numpy")


def canonical_json(values: Any) -> str:
    """JSON with sorted keys and no white space: one text for equal values.

    Raises ``ValueError`` for what JSON does not know, NaN and infinities included.
    """
    try:
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"{error}: expected plain numbers, strings, lists and dictionaries") from None


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The settings in which two protocols, as dictionaries, differ: "scorer.dtype: 'float32' against 'float16'"."""
    found = []
    for name in sorted({*first, *second}):
        ours, theirs = first.get(name), second.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            found += [f"{name}.{line}" for line in differences(ours, theirs)]
        elif ours != theirs:
            found.append(f"{name}: {ours!r} against {theirs!r}")
    return found


def same_protocol(rows: Iterable[Mapping[str, Any]]) -> str:
    """The hash that all ``rows`` carry (:meth:`ScoringProtocol.stamp`), so that they may stand in one table.

    Raises ``UserError`` where there is no row, one carries no hash or not the hash of its protocol, or two differ; the
    message tells in what.
    """
    first: Mapping[str, Any] | None = None
    for number, row in enumerate(rows, 1):
        _check_stamp(row, number)
        if first is None:
            first = row
        elif row[HASH_KEY] != first[HASH_KEY]:
            telling = "; ".join(differences(first.get(PROTOCOL_KEY, {}), row.get(PROTOCOL_KEY, {}))[:3])
            raise UserError(
                f"row {number} is of scoring protocol {row[HASH_KEY]}, the rows before it of {first[HASH_KEY]} "
                f"({telling or 'settings not stored'}): their numbers do not compare; keep them in files of their own"
            )
    if first is None:
        raise UserError("no rows: expected at least one that carries its scoring protocol")
    return str(first[HASH_KEY])


def _check_stamp(row: Mapping[str, Any], number: int) -> None:
    if not isinstance(row.get(HASH_KEY), str):
        raise UserError(
            f"row {number} carries no {HASH_KEY}: it is not from `fewstep evaluate`, or of an older version"
        )
    if PROTOCOL_KEY in row and hash_of(row[PROTOCOL_KEY]) != row[HASH_KEY]:
        raise UserError(f"row {number}: the stored protocol has not the hash {row[HASH_KEY]}: the file was edited")


def hash_of(values: Any) -> str:
    """12 hex digits of SHA-256 of the canonical JSON of plain values."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:HASH_DIGITS]
