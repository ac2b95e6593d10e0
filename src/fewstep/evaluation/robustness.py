"""What a parallel readout still needs to know, given the latents. N blocks, L tokens."""

import torch

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.metrics import bits_per_byte
from fewstep.readouts import ParallelReadout
from fewstep.types import TokenBatch


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
    device = next(autoencoder.parameters()).device
    nats = 0.0
    for ids, mask in zip(tokens.ids.split(batch_size), tokens.mask.split(batch_size), strict=True):
        rows = TokenBatch(ids.to(device), mask.to(device))
        latents = autoencoder.encode(rows.ids, rows.mask)
        per_token = readout.loss(latents.z, rows.ids, rows.mask).double()
        nats += float((per_token * rows.mask.sum(-1)).sum())
    return bits_per_byte(nats, num_bytes)
