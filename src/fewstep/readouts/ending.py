"""Where a text ends: the first end-of-text token, after which there is padding. B batch, L tokens."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.types import TokenSample


@dataclass(frozen=True)
class Ending:
    """Stop at the first ``end_id``: what follows it is ``pad_id``. Both are token ids, and may be the same."""

    end_id: int
    pad_id: int

    def cut(self, ids: Tensor, log_probs: Tensor) -> TokenSample:
        """``ids`` and ``log_probs`` (B, L) up to and including the first end of each row.

        Behind it ids are padding, log-probabilities 0 and the mask (B, L) is false.
        """
        mask = tokens_to_first_end(ids, self.end_id)
        return TokenSample(ids.masked_fill(~mask, self.pad_id), log_probs.masked_fill(~mask, 0.0), mask)


def tokens_to_first_end(ids: Tensor, end_id: int) -> Tensor:
    """Mask (B, L) that is true up to and including the first ``end_id`` of each row of ``ids`` (B, L)."""
    ends = (ids == end_id).long()
    return ends.cumsum(-1) - ends == 0


def ended(ids: Tensor, log_probs: Tensor, ending: Ending | None) -> TokenSample:
    """A sample of ``ids`` and ``log_probs`` (B, L), cut at the end-of-text where ``ending`` is given."""
    return TokenSample(ids, log_probs) if ending is None else ending.cut(ids, log_probs)
