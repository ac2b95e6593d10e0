"""What the grammar of a corpus says of the texts of a sweep, exactly and with no scorer between. N texts, L tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fewstep.evaluation.grammar import GrammarJudge, block_texts
from fewstep.evaluation.grammar_scores import GrammarMeasures, GrammarScores
from fewstep.lab.theory.grammar import grammar_sentences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class GrammarReference:
    """The law of the source ``grammar`` or ``grammar:N``, and the ``tokenizer`` that turns blocks into sentences.

    Raises ``UserError`` for another source.
    """

    def __init__(self, source: str, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.judge = GrammarJudge(source)
        self.measures = GrammarMeasures(self.judge.law)
        self.tokenizer = tokenizer

    def protocol(self) -> dict[str, Any]:
        """What the columns depend on beside the texts, as plain values for the protocol."""
        return {"grammar": self.judge.fingerprint}

    def scores(self, ids: Tensor, mask: Tensor, seeds: Sequence[int]) -> GrammarScores:
        """The columns of blocks ``ids`` (N, L), ``mask`` (N, L) false at padding; ``seeds`` has one per text."""
        ended = ids.masked_fill(~mask.bool(), int(self.tokenizer.eos_token_id))
        return self.measures.scores(self.judge.judge(block_texts(self.tokenizer, ended)), seeds)


def grammar_reference(source: str, tokenizer: "PreTrainedTokenizerFast") -> GrammarReference | None:
    """For a source with a known law; None for any other text. Raises ``UserError`` for a length without sentences."""
    return None if grammar_sentences(source) is None else GrammarReference(source, tokenizer)
