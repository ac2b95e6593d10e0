"""Decoding without caches, to compare with."""

import torch
from torch import Tensor

from fewstep.nn import Context
from fewstep.readouts import CausalTransformer, TokenDraw, draw_tokens
from fewstep.readouts.categorical import cut_at_end
from fewstep.types import TokenSample


@torch.no_grad()
def decode_naive(network: CausalTransformer, u: Tensor, context: Context | None, draw: TokenDraw) -> TokenSample:
    """The tokens of ``decode_cached`` from the whole prefix at every step: slow, plainly right."""
    ids, log_probs = torch.zeros_like(u, dtype=torch.long), torch.zeros_like(u, dtype=torch.float32)
    for step in range(u.shape[1]):
        logits = network(network.shift_right(ids)[:, : step + 1], context)[:, -1]
        ids[:, step], log_probs[:, step] = draw_tokens(
            logits, u[:, step], temperature=draw.temperature, top_p=draw.top_p, top_k=draw.top_k
        )
    return cut_at_end(ids, log_probs, draw.ending)
