"""Text under the run's language model. N blocks, L tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.readouts import LanguageModel


@dataclass(frozen=True)
class BlockScores:
    """``nats`` (N,) float64, the sum over the tokens of a block that count; ``tokens`` (N,) float64, their number."""

    nats: Tensor
    tokens: Tensor

    def stacked(self) -> Tensor:
        """(N, 2), nats and tokens, as :func:`perplexity_of_blocks` takes them."""
        return torch.stack([self.nats, self.tokens], dim=1)


def corpus_perplexity(stacked: Tensor) -> Tensor:
    """exp(all nats / all tokens) of blocks (..., N, 2), float64 (...)."""
    nats, tokens = stacked.double().sum(-2).unbind(-1)
    return torch.exp(nats / tokens)


def perplexity_of_blocks(stacked: Tensor) -> float:
    """:func:`corpus_perplexity` of one set of blocks (N, 2)."""
    return float(corpus_perplexity(stacked))


@torch.no_grad()
def score_blocks(model: LanguageModel, ids: Tensor, mask: Tensor, *, batch_size: int = 64) -> BlockScores:
    """Likelihood of ``ids`` (N, L) int64, every block on its own, from its first token on (this project's protocol).

    The first token is predicted from the begin-of-block state, so all L tokens count where ``mask`` (N, L) is true,
    end-of-text tokens among them. The network's logits are taken in float32, sums are float64, no block is dropped.
    """
    device = next(model.parameters()).device
    sums = []
    for rows, seen in zip(ids.split(batch_size), mask.split(batch_size), strict=True):
        nats = model.token_nats(rows.to(device)).double().cpu()
        sums.append(torch.where(seen.cpu(), nats, 0.0).sum(-1))
    return BlockScores(torch.cat(sums), mask.cpu().sum(-1).double())
