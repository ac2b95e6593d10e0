"""Who scores text: the run's own language model, or any causal one of transformers. N texts, L tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.data import tokenizer_fingerprint
from fewstep.evaluation.scored_text import DIGEST_DIGITS, ScoredText, Scorer, weights_digest
from fewstep.evaluation.scoring import score_blocks
from fewstep.evaluation.transformers_scorer import TransformersScorer
from fewstep.metrics.text import sample_entropies_nats
from fewstep.readouts import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["RunScorer", "ScoredText", "Scorer", "TransformersScorer", "weights_digest"]


class RunScorer:
    """The run's own language model: scores ids as :func:`fewstep.evaluation.scoring.score_blocks` does.

    Blocks are scored from their first token on, where the mask is true, ends of text among them.
    """

    def __init__(self, model: LanguageModel, tokenizer: "PreTrainedTokenizerFast", *, batch_size: int = 64) -> None:
        self.name = "the run's language model"
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def identity(self) -> dict[str, Any]:
        """Class, network and its weights' hash, dtype, tokenizer, rule for ends of text."""
        return {
            "class": type(self).__name__,
            "network": dict(self.model.network.config),
            "weights": weights_digest(self.model),
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "tokenizer": tokenizer_fingerprint(self.tokenizer)[:DIGEST_DIGITS],
            "begin_of_text": "a learned begin-of-block state: the first token is scored",
            "end_of_text": "scored as any token, where the mask is true",
        }

    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> ScoredText:
        """Score ``ids`` (N, L) where ``mask`` (N, L) is true; ``texts`` is not used."""
        scores = score_blocks(self.model, ids, mask, batch_size=self.batch_size)
        return ScoredText(scores.nats, scores.tokens, sample_entropies_nats(ids.cpu(), mask.cpu()))

    @torch.no_grad()
    def features(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> Tensor:
        """The normed state that has read a text up to its last token, (N, H) float32; ``texts`` is not used.

        It is the one that would predict a token behind it: ids stand unshifted behind the begin-of-block state. A text
        without a token has the state at the begin of a block.
        """
        network, kept = self.model.network, []
        inputs = torch.cat([network.shift_right(ids), ids[:, -1:]], dim=1)  # (N, L+1): begin of block, then all ids
        last = (mask.cpu().long() * torch.arange(1, ids.shape[1] + 1)).amax(1)
        hook = network.norm.register_forward_hook(lambda module, given, states: kept.append(states))
        try:
            for rows in inputs.split(self.batch_size):
                network(rows.to(next(network.parameters()).device))
        finally:
            hook.remove()
        states = torch.cat([part.float().cpu() for part in kept])
        return states[torch.arange(len(states)), last]
