"""Who scores text: what a scorer offers, and the run's own language model as one. N texts, L tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.data.tokenizer import decode_blocks, tokenizer_fingerprint
from fewstep.metrics.text import sample_entropies_nats
from fewstep.readouts import LanguageModel
from fewstep.shapes import tensors_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DIGEST_DIGITS = 16
Spans = Sequence[tuple[int, int]]
"""The characters of each text that count, first and behind the last."""


@dataclass(frozen=True)
class ScoredText:
    """Scores of N texts, all (N,) float64 on the CPU, on the scorer's tokens.

    ``nats``: negative log-likelihood summed over the scored tokens of a text; ``tokens``: their number;
    ``entropies_nats``: entropy of their histogram, 0 where no token is scored.
    """

    nats: Tensor
    tokens: Tensor
    entropies_nats: Tensor


def corpus_perplexity(stacked: Tensor) -> Tensor:
    """exp(all nats / all tokens) of texts with nats and tokens (..., N, 2), float64 (...)."""
    nats, tokens = stacked.double().sum(-2).unbind(-1)
    return torch.exp(nats / tokens)


def texts_of(tokenizer: "PreTrainedTokenizerFast", ids: Tensor, mask: Tensor) -> list[str]:
    """The texts of ``ids`` (N, L) where ``mask`` (N, L) is true."""
    return [decode_blocks(tokenizer, row[seen][None])[0] for row, seen in zip(ids, mask, strict=True)]


class Scorer(Protocol):
    """Gives text a likelihood. ``name`` is what a table shows."""

    name: str

    def identity(self) -> dict[str, Any]:
        """Everything that its numbers depend on, as plain values; part of a sweep's protocol."""
        ...

    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor, spans: Spans | None = None) -> ScoredText:
        """Score N texts, given as strings and as the model's tokens ``ids`` (N, L) with ``mask`` (N, L) of those that
        count, given the ones before them. A scorer takes whichever it understands; both are the same text. ``spans``:
        of the strings, what counts (None: all)."""
        ...

    def features(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> Tensor:
        """A vector for each text, (N, H) float32 on the CPU, for MAUVE: the last hidden state at the last token."""
        ...


class RunScorer:
    """The run's own language model, which scores every block from its first token on, where the mask is true.

    The first token is predicted from the begin-of-block state; ends of text are scored too. Logits are float32, sums
    float64. Of a text it takes the tokens.
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

    @torch.no_grad()
    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor, spans: Spans | None = None) -> ScoredText:
        """As :class:`Scorer` says."""
        device, mask = next(self.model.parameters()).device, mask.cpu()
        nats = torch.cat([self.model.token_nats(rows.to(device)).double().cpu() for rows in ids.split(self.batch_size)])
        entropies = sample_entropies_nats(ids.cpu(), mask)
        return ScoredText(torch.where(mask, nats, 0.0).sum(-1), mask.sum(-1).double(), entropies)

    @torch.no_grad()
    def features(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> Tensor:
        """The normed state that has read a text up to its last token, (N, H) float32.

        It is the one that would predict a token behind it: ids stand unshifted behind the begin-of-block state. A text
        without a token has the state at the begin of a block.
        """
        network = self.model.network
        device = next(network.parameters()).device
        inputs = torch.cat([network.shift_right(ids), ids[:, -1:]], dim=1)  # (N, L+1): begin of block, then all ids
        states = [network.hidden(rows.to(device)).float().cpu() for rows in inputs.split(self.batch_size)]
        last = (mask.cpu().long() * torch.arange(1, ids.shape[1] + 1)).amax(1)
        return torch.cat(states)[torch.arange(len(ids)), last]


def weights_digest(module: nn.Module) -> str:
    """16 hex digits of :func:`fewstep.shapes.tensors_digest` of a module's weights."""
    return tensors_digest(module.state_dict())[:DIGEST_DIGITS]
