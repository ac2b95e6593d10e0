"""What a scorer gives, and what it must offer. N texts, L tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.evaluation.scoring import perplexity_of_blocks

DIGEST_DIGITS = 16


@dataclass(frozen=True)
class ScoredText:
    """Scores of N texts, all (N,) float64 on the CPU.

    ``nats``: negative log-likelihood summed over the tokens of a text that are scored; ``tokens``: their number;
    ``entropies_nats``: entropy of the histogram of these same tokens (0 where there is none). Tokens are the scorer's.
    """

    nats: Tensor
    tokens: Tensor
    entropies_nats: Tensor

    @property
    def num_scored(self) -> int:
        """Tokens scored in all texts together."""
        return int(self.tokens.sum())

    def stacked(self) -> Tensor:
        """(N, 2), nats and tokens, as :func:`fewstep.evaluation.scoring.perplexity_of_blocks` takes them."""
        return torch.stack([self.nats, self.tokens], dim=1)

    def perplexity(self) -> float:
        """Corpus perplexity, exp(all nats / all tokens). Raises ``ValueError`` where no token was scored."""
        if not self.num_scored:
            raise ValueError(f"{len(self.tokens)} texts without a token to score: expected at least one token")
        return perplexity_of_blocks(self.stacked())


class Scorer(Protocol):
    """Gives text a likelihood. ``name`` is what a table shows."""

    name: str

    def identity(self) -> dict[str, Any]:
        """Everything that its numbers depend on, as plain values; part of the scoring protocol's hash."""
        ...

    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> ScoredText:
        """Score N texts, given as strings and as the model's tokens ``ids`` (N, L) with ``mask`` (N, L) of those that
        count. A scorer takes whichever it understands; both are the same text."""
        ...

    def features(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> Tensor:
        """One vector a text, (N, H) float32 on the CPU, for MAUVE: its last hidden state at the last token."""
        ...


def weights_digest(module: nn.Module) -> str:
    """16 hex digits of SHA-256 over the names, dtypes, shapes and bytes of a module's weights, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGEST_DIGITS]
