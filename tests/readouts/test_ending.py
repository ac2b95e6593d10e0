"""Laws of stopping: rows end at their first end-of-text, what stands before it stays, nothing behind is computed."""

from functools import partial

import pytest
import torch
from torch import Tensor

from fewstep.nn import Context
from fewstep.readouts import (
    CausalTransformer,
    CommitmentHead,
    Ending,
    LanguageModel,
    LinearReadout,
    TokenDraw,
    decode_cached,
)
from tests.nn.builders import first, normal, randomised
from tests.readouts.naive import decode_naive

V, D, B, L = 5, 3, 12, 10
ENDING = Ending(end_id=2, pad_id=4)
DRAW = TokenDraw(temperature=3.0, top_k=4)


def network(latent_dim: int | None) -> CausalTransformer:
    return randomised(lambda: CausalTransformer(V, latent_dim=latent_dim, width=8, depth=2, num_heads=2))


def context_of(model: CausalTransformer, generator: torch.Generator) -> Context:
    levels = torch.rand(B, generator=generator)
    return model.context(normal((B, L, D), generator), first([L] * (B - 1) + [3], L), levels)


def assert_stopped(stopped: Tensor, mask: Tensor, free: Tensor) -> None:
    """``stopped`` is ``free`` up to the first end of every row, and padding behind it."""
    lengths = []
    for row, one in enumerate(free.tolist()):
        length = one.index(ENDING.end_id) + 1 if ENDING.end_id in one else len(one)
        assert stopped[row].tolist() == one[:length] + [ENDING.pad_id] * (len(one) - length)
        assert mask[row].tolist() == [True] * length + [False] * (len(one) - length)
        lengths.append(length)
    assert len(set(lengths)) > 2, "rows of one length would prove little"


@pytest.mark.parametrize("latent_dim", [None, D], ids=["language_model", "latents"])
def test_stopped_cached_decoding_is_the_naive_loop_and_the_unstopped_one_up_to_the_end(
    latent_dim: int | None, generator: torch.Generator
) -> None:
    model = network(latent_dim)
    context = None if latent_dim is None else context_of(model, generator)
    u = torch.rand((B, L), generator=generator)
    free = decode_cached(model, u, context, DRAW)
    fast, slow = (decode(model, u, context, DRAW._replace(ending=ENDING)) for decode in (decode_cached, decode_naive))
    assert torch.equal(fast.ids, slow.ids) and torch.equal(fast.mask, slow.mask)
    torch.testing.assert_close(fast.log_probs, slow.log_probs, rtol=0, atol=1e-6)
    assert_stopped(fast.ids, fast.mask, free.ids)
    torch.testing.assert_close(fast.log_probs[fast.mask], free.log_probs[fast.mask], rtol=0, atol=1e-6)
    assert (fast.log_probs[~fast.mask] == 0).all()
    assert torch.equal(fast.written, fast.mask) and bool(free.written.all())


def test_every_readout_stops_its_texts(generator: torch.Generator) -> None:
    z, mask = normal((B, L, D), generator), torch.ones(B, L, dtype=torch.bool)
    head = CommitmentHead(network(D))
    readers = (head, CommitmentHead(head.network, sees_tokens=False), randomised(lambda: LinearReadout(V, D)))
    writers = [partial(reader.generate, z, mask) for reader in readers]
    for write in (*writers, partial(LanguageModel(network(None)).generate, B, L)):
        free, stopped = (
            write(temperature=3.0, ending=one, generator=torch.Generator().manual_seed(1)) for one in (None, ENDING)
        )
        assert_stopped(stopped.ids, stopped.mask, free.ids)
