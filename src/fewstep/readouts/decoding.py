"""Token-by-token decoding of a causal transformer, naive and cached. B batch, L tokens, V vocabulary."""

import torch
from torch import Tensor

from fewstep.nn import Context
from fewstep.readouts.categorical import draw_tokens
from fewstep.readouts.causal import CausalTransformer
from fewstep.readouts.ending import Ending, ended
from fewstep.types import TokenSample


@torch.no_grad()
def decode_cached(
    network: CausalTransformer,
    u: Tensor,
    context: Context | None,
    *,
    temperature: float,
    top_p: float,
    top_k: int | None = None,
    ending: Ending | None = None,
) -> TokenSample:
    """Tokens (B, L), one for each uniform of ``u`` (B, L), with keys and values kept between steps, the context's too.

    With ``ending`` a row stops at its end-of-text: it leaves the batch, and the loop is over when all have. What a row
    holds up to there does not depend on ``ending``. Raises ``ValueError`` where :func:`draw_tokens` does.
    """
    ids = torch.full(u.shape, 0 if ending is None else ending.pad_id, dtype=torch.long, device=u.device)
    log_probs = torch.zeros(u.shape, dtype=torch.float32, device=u.device)
    mask = torch.zeros(u.shape, dtype=torch.bool, device=u.device)
    rows, caches = torch.arange(len(u), device=u.device), network.empty_caches(u.shape[1], context)
    inputs = torch.full((len(u), 1), network.vocab_size, dtype=torch.long, device=u.device)
    for step in range(u.shape[1]):
        logits = network(inputs, None, caches)[:, -1]
        token, log_prob = draw_tokens(logits, u[rows, step], temperature=temperature, top_p=top_p, top_k=top_k)
        ids[rows, step], log_probs[rows, step], mask[rows, step] = token, log_prob, True
        if ending is not None and bool((going := token != ending.end_id).logical_not().any()):
            if not bool(going.any()):
                break
            rows, token = rows[going], token[going]
            for cache in caches:
                cache.keep(going)
        inputs = token[:, None]
    return TokenSample(ids, log_probs, None if ending is None else mask)


@torch.no_grad()
def decode_naive(
    network: CausalTransformer,
    u: Tensor,
    context: Context | None,
    *,
    temperature: float,
    top_p: float,
    top_k: int | None = None,
    ending: Ending | None = None,
) -> TokenSample:
    """The same tokens as :func:`decode_cached`, from the whole prefix at every step: slow, plainly right."""
    ids = torch.zeros_like(u, dtype=torch.long)
    log_probs = torch.zeros_like(u, dtype=torch.float32)
    for step in range(u.shape[1]):
        logits = network(network.shifted(ids)[:, : step + 1], context)[:, -1]
        ids[:, step], log_probs[:, step] = draw_tokens(
            logits, u[:, step], temperature=temperature, top_p=top_p, top_k=top_k
        )
    return ended(ids, log_probs, ending)
