"""Where a text ends: the first end-of-text token, after which there is padding. B batch, L tokens."""

from torch import Tensor

from fewstep.types import Ending, TokenSample


def tokens_to_first_end(ids: Tensor, end_id: int) -> Tensor:
    """Mask (B, L) that is true up to and including the first ``end_id`` of each row of ``ids`` (B, L)."""
    ends = (ids == end_id).long()
    return ends.cumsum(-1) - ends == 0


def ended(ids: Tensor, log_probs: Tensor, ending: Ending | None) -> TokenSample:
    """A sample of ``ids`` and ``log_probs`` (B, L), each row up to and including its first end-of-text.

    Behind it ids are padding, log-probabilities 0 and the mask (B, L) is false. Without ``ending`` nothing is cut.
    """
    if ending is None:
        return TokenSample(ids, log_probs)
    mask = tokens_to_first_end(ids, ending.end_id)
    return TokenSample(ids.masked_fill(~mask, ending.pad_id), log_probs.masked_fill(~mask, 0.0), mask)
