"""The grammar as a scorer: exact likelihood where the corpus has a known law. N texts, L tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.data import tokenizer_fingerprint
from fewstep.evaluation.grammar import GrammarJudge, block_texts
from fewstep.evaluation.scored_text import DIGEST_DIGITS, ScoredText
from fewstep.metrics import sample_entropies_nats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class GrammarScorer:
    """Scores valid sentences by their exact probability, a token a word; a text that is no sentence has no token.

    So the perplexity of a setting is exp(exact nats per word) of its valid texts, and the number of scored tokens tells
    how many these are: read the one with the other. Entropies are those of the model's tokens.
    """

    def __init__(self, judge: GrammarJudge, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.name = "the grammar (valid texts only)"
        self.judge = judge
        self.tokenizer = tokenizer

    def identity(self) -> dict[str, Any]:
        """Class, source, the grammar's hash and the tokenizer's."""
        return {
            "class": type(self).__name__,
            "source": self.judge.source,
            "grammar": self.judge.fingerprint,
            "tokenizer": tokenizer_fingerprint(self.tokenizer)[:DIGEST_DIGITS],
        }

    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> ScoredText:
        """Score blocks ``ids`` (N, L), padding (``mask`` (N, L) false) left out; ``texts`` is not looked at."""
        ended = ids.cpu().masked_fill(~mask.bool().cpu(), int(self.tokenizer.eos_token_id))
        judged = self.judge.judge(block_texts(self.tokenizer, ended))
        nats = torch.where(judged.valid, -judged.log_probability, 0.0)
        tokens = judged.valid.double() * self.judge.law.num_words
        return ScoredText(nats, tokens, sample_entropies_nats(ids.cpu(), mask.cpu()))
