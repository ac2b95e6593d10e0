"""What a likelihood says about text."""

import math

import torch
from torch import Tensor


def perplexity_from_nats(nats: Tensor, mask: Tensor | None = None) -> float:
    """Corpus perplexity: exp of the mean of ``nats`` (...) over all tokens where ``mask`` (...) is true.

    The mean is taken over tokens, not over samples, and before the exponential: the mean of per-sample perplexities
    is a different, larger number. Float64. Raises ValueError where no token counts.
    """
    values = nats.double().flatten() if mask is None else nats.double()[mask.bool()]
    if not len(values):
        raise ValueError("no tokens: a perplexity needs at least 1")
    return float(torch.exp(values.mean()))


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Bits per UTF-8 byte of text: ``nats`` summed over all its tokens (end-of-text included), over ``num_bytes``.

    Unlike perplexity per token it compares across tokenizers. Raises ValueError for ``num_bytes`` < 1.
    """
    if num_bytes < 1:
        raise ValueError(f"num_bytes is {num_bytes}: bits per byte need at least 1 byte of text")
    return nats / math.log(2) / num_bytes
