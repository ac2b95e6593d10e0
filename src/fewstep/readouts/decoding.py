"""Token-by-token decoding of a causal transformer, naive and cached. B batch, L tokens, V vocabulary."""

import torch
from torch import Tensor

from fewstep.nn import Context
from fewstep.readouts.categorical import draw_tokens
from fewstep.readouts.causal import CausalTransformer
from fewstep.types import TokenSample


@torch.no_grad()
def decode_cached(
    network: CausalTransformer, u: Tensor, context: Context | None, *, temperature: float, top_p: float
) -> TokenSample:
    """Tokens (B, L), one for each uniform of ``u`` (B, L), with keys and values kept between steps."""
    caches = network.empty_caches()
    inputs = torch.full((u.shape[0], 1), network.vocab_size, dtype=torch.long, device=u.device)
    ids, log_probs = [], []
    for step in range(u.shape[1]):
        logits = network(inputs, context, caches)[:, -1]
        token, log_prob = draw_tokens(logits, u[:, step], temperature=temperature, top_p=top_p)
        ids.append(token)
        log_probs.append(log_prob)
        inputs = token[:, None]
    return TokenSample(torch.stack(ids, 1), torch.stack(log_probs, 1))


@torch.no_grad()
def decode_naive(
    network: CausalTransformer, u: Tensor, context: Context | None, *, temperature: float, top_p: float
) -> TokenSample:
    """The same tokens as :func:`decode_cached`, from the whole prefix at every step: slow, plainly right."""
    ids = torch.zeros_like(u, dtype=torch.long)
    log_probs = torch.zeros_like(u, dtype=torch.float32)
    for step in range(u.shape[1]):
        logits = network(network.shifted(ids)[:, : step + 1], context)[:, -1]
        ids[:, step], log_probs[:, step] = draw_tokens(logits, u[:, step], temperature=temperature, top_p=top_p)
    return TokenSample(ids, log_probs)
