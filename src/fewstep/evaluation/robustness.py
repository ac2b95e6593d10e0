"""How far latents may be off before tokens change. N blocks, L tokens, K positions, D latent dimension."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.metrics import bits_per_byte
from fewstep.readouts import ParallelReadout
from fewstep.shapes import randn
from fewstep.types import Latents, TokenBatch

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
"""Noise levels, rms in units of a latent dimension's standard deviation (latents are whitened)."""


@dataclass(frozen=True)
class NoiseRobustness:
    """Token accuracy of a parallel readout over noise.

    ``levels`` rms; ``accuracies`` share of real tokens read back right, over all blocks; ``spreads`` standard deviation
    of the accuracy over ``num_batches`` batches; ``num_tokens`` real tokens read at each level.
    """

    levels: tuple[float, ...]
    accuracies: tuple[float, ...]
    spreads: tuple[float, ...]
    num_tokens: int
    num_batches: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_markdown(self) -> str:
        """A Markdown table, one column a level."""
        head = ["noise (rms)", *(f"{level:g}" for level in self.levels)]
        body = ["token accuracy (%)", *(f"{100 * accuracy:.2f}" for accuracy in self.accuracies)]
        spread = [f"spread over {self.num_batches} batches (%)", *(f"{100 * value:.2f}" for value in self.spreads)]
        lines = [head, ["---"] * len(head), body, spread]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


@torch.no_grad()
def noise_robustness(
    autoencoder: TransformerAutoencoder,
    readout: ParallelReadout,
    tokens: TokenBatch,
    *,
    generator: torch.Generator,
    levels: Sequence[float] = LEVELS,
    batch_size: int = 64,
) -> NoiseRobustness:
    """Accuracy on z + level n, with z the latents of ``tokens`` (N, L) and n isotropic standard normal noise (N, K, D).

    Noise is added, not mixed in: at level 1 signal and noise have equal power. A block's noise is the same direction
    at every level, so that levels differ by the level alone. The parts must be in evaluation mode. Raises ValueError
    for a negative level and for fewer than 2 blocks, which have no spread (this project's definition).
    """
    if len(tokens.ids) < 2 or not levels or min(levels) < 0:
        raise ValueError(
            f"{len(tokens.ids)} blocks, levels {list(levels)}: expected at least 2 blocks and levels of at least 0"
        )
    right: list[list[int]] = [[] for _ in levels]
    totals = []
    for rows, latents in _encoded(autoencoder, tokens, min(batch_size, math.ceil(len(tokens.ids) / 2))):
        noise = randn(tuple(latents.z.shape), latents.z, generator)
        totals.append(int(rows.mask.sum()))
        for counts, level in zip(right, levels, strict=True):
            guess = readout(latents.z + level * noise, latents.mask).argmax(-1)
            counts.append(int(((guess == rows.ids) & rows.mask).sum()))
    total = torch.tensor(totals, dtype=torch.float64)
    shares = torch.tensor(right, dtype=torch.float64) / total.clamp(min=1)
    accuracies = torch.tensor(right, dtype=torch.float64).sum(1) / total.sum().clamp(min=1)
    return NoiseRobustness(
        levels=tuple(float(level) for level in levels),
        accuracies=tuple(accuracies.tolist()),
        spreads=tuple(shares.std(1).tolist()),
        num_tokens=int(total.sum()),
        num_batches=len(totals),
    )


@torch.no_grad()
def reconstruction_bits_per_byte(
    autoencoder: TransformerAutoencoder,
    readout: ParallelReadout,
    tokens: TokenBatch,
    num_bytes: int,
    *,
    batch_size: int = 64,
) -> float:
    """Bits per UTF-8 byte that the readout still needs, given the clean latents of ``tokens`` (N, L).

    Cross-entropy of all real tokens over the ``num_bytes`` of text that they stand for. Raises ValueError for
    ``num_bytes`` < 1.
    """
    nats = 0.0
    for rows, latents in _encoded(autoencoder, tokens, batch_size):
        per_token = readout.loss(latents.z, rows.ids, rows.mask).double()
        nats += float((per_token * rows.mask.sum(-1)).sum())
    return bits_per_byte(nats, num_bytes)


def _encoded(
    autoencoder: TransformerAutoencoder, tokens: TokenBatch, batch_size: int
) -> Iterator[tuple[TokenBatch, Latents]]:
    device = next(autoencoder.parameters()).device
    pairs: Iterator[tuple[Tensor, Tensor]] = zip(
        tokens.ids.split(batch_size), tokens.mask.split(batch_size), strict=True
    )
    for ids, mask in pairs:
        rows = TokenBatch(ids.to(device), mask.to(device))
        yield rows, autoencoder.encode(rows.ids, rows.mask)
