"""What became of the documents: counts that a run states before it trains."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class SplitReport:
    """Counts of one split.

    ``documents`` kept; ``tokens`` of those documents, one end-of-text each included; ``bytes`` of their UTF-8 text;
    ``blocks`` written; ``dropped_tokens`` of the tail that filled no block; ``padded_positions`` over all blocks.
    """

    documents: int
    tokens: int
    bytes: int
    blocks: int
    dropped_tokens: int
    padded_positions: int

    def __str__(self) -> str:
        text = f"{self.documents:,} documents, {self.tokens:,} tokens, {self.blocks:,} blocks"
        if self.dropped_tokens:
            text += f", {self.dropped_tokens:,} tail tokens dropped"
        if self.padded_positions:
            text += f", {self.padded_positions:,} positions padded"
        return text


@dataclass(frozen=True)
class PackingReport:
    """Counts of a whole corpus. ``train`` is None when it is streamed, for then it is never counted.

    ``empty_documents`` and ``duplicate_documents`` were left out; ``notes`` are sentences worth showing to a user.
    """

    source: str
    block_size: int
    vocabulary: int
    train: SplitReport | None
    validation: SplitReport
    empty_documents: int
    duplicate_documents: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        train = "streamed, packed as it comes" if self.train is None else str(self.train)
        first = f"{self.source}: blocks of {self.block_size}, {self.vocabulary:,} token types; train: {train}"
        second = f"validation: {self.validation}"
        if self.empty_documents or self.duplicate_documents:
            second += f"; left out: {self.empty_documents:,} empty and {self.duplicate_documents:,} duplicate documents"
        return "\n".join([first, "; ".join([second, *self.notes])])

    def to_dict(self) -> dict[str, object]:
        """Plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "PackingReport":
        """The inverse of :meth:`to_dict`."""
        train = values["train"]
        return cls(
            source=values["source"],
            block_size=values["block_size"],
            vocabulary=values["vocabulary"],
            train=None if train is None else SplitReport(**train),
            validation=SplitReport(**values["validation"]),
            empty_documents=values["empty_documents"],
            duplicate_documents=values["duplicate_documents"],
            notes=tuple(values["notes"]),
        )
