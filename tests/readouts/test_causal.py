"""Laws of the causal transformer: causality, cached against naive decoding, teacher forcing against decoding."""

import pytest
import torch
from torch import Tensor

from fewstep.nn import Context
from fewstep.readouts import CausalTransformer, CommitmentHead, LanguageModel, TokenDraw, decode_cached
from fewstep.shapes import example_generators
from tests.nn.builders import first, normal, randomised
from tests.readouts.naive import decode_naive

V, D, L = 11, 3, 8
TRUST = 0.7


def build(latent_dim: int | None, stride: int = 2) -> CausalTransformer:
    return CausalTransformer(V, latent_dim=latent_dim, stride=stride, width=8, depth=2, num_heads=2)


def network_and_context(latent_dim: int | None, generator: torch.Generator) -> tuple[CausalTransformer, Context | None]:
    network = randomised(lambda: build(latent_dim))
    if latent_dim is None:
        return network, None
    z = normal((3, L // 2, latent_dim), generator)
    return network, network.context(z, first([4, 2, 3], L // 2), torch.tensor([0.0, 0.5, 2.0]))


with_and_without_latents = pytest.mark.parametrize("latent_dim", [None, D], ids=["language_model", "latents"])


@with_and_without_latents
def test_a_later_input_never_moves_an_earlier_logit(latent_dim: int | None, generator: torch.Generator) -> None:
    network, context = network_and_context(latent_dim, generator)
    inputs = torch.randint(V, (3, L), generator=generator)
    logits = network(inputs, context)
    for j in range(L):
        changed = inputs.clone()
        changed[:, j] = (inputs[:, j] + 1) % V
        moved = network(changed, context) - logits
        assert (moved[:, :j] == 0).all()
        assert moved[:, j].abs().amax(-1).min() > 1e-3


@with_and_without_latents
@pytest.mark.parametrize("draw", [TokenDraw(3.0), TokenDraw(2.0, 0.8), TokenDraw(3.0, top_k=4), TokenDraw(0.0)])
def test_cached_decoding_equals_the_naive_loop_token_for_token(
    latent_dim: int | None, draw: TokenDraw, generator: torch.Generator
) -> None:
    network, context = network_and_context(latent_dim, generator)
    u = torch.rand((3, L), generator=generator)
    fast, slow = decode_cached(network, u, context, draw), decode_naive(network, u, context, draw)
    assert torch.equal(fast.ids, slow.ids) and fast.mask is None
    assert draw.temperature == 0 or len(fast.ids.unique()) > 3, "a constant text would prove little"
    torch.testing.assert_close(fast.log_probs, slow.log_probs, rtol=0, atol=1e-6)


def test_caches_take_the_context_when_they_are_made(generator: torch.Generator) -> None:
    network, context = network_and_context(D, generator)
    inputs = torch.randint(V, (3, L), generator=generator)
    caches = network.empty_caches(L, context)
    parts = [network(part, None, caches) for part in inputs.split([5, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), network(inputs, context), rtol=0, atol=1e-11)


def test_the_log_probs_of_decoding_are_those_of_teacher_forcing(generator: torch.Generator) -> None:
    model = LanguageModel(randomised(lambda: build(None)))
    sample = model.generate(4, L, generator=generator)
    nats = model.token_nats(sample.ids)
    torch.testing.assert_close(-sample.log_probs.double(), nats.double(), rtol=0, atol=1e-5)
    mask = first([8, 3, 1, 0], L)
    expected = torch.stack([row[:n].mean() if n else row.sum() * 0 for row, n in zip(nats, (8, 3, 1, 0), strict=True)])
    torch.testing.assert_close(model.loss(sample.ids, mask), expected)


def test_padded_latents_change_no_logit_of_the_head(generator: torch.Generator) -> None:
    head = CommitmentHead(randomised(lambda: build(D)))
    z, mask, level = normal((2, 4, D), generator), first([4, 2], 4), torch.tensor([0.3, 1.0])
    ids = torch.randint(V, (2, L), generator=generator)
    more = torch.cat([torch.where(mask[..., None], z, 9.0), 9 * normal((2, 3, D), generator)], 1)
    plain = head.logits(z, mask, ids, level)
    torch.testing.assert_close(head.logits(more, first([4, 2], 7), ids, level), plain, rtol=0, atol=1e-10)
    assert (head.logits(more, first([7, 7], 7), ids, level) - plain).abs().max() > 1e-2
    junk = torch.cat([ids, torch.randint(V, (2, 6), generator=generator)], 1)
    short = head.loss(z, ids, first([8, 4], 8), level)
    torch.testing.assert_close(head.loss(more, junk, first([8, 4], 14), level), short, rtol=0, atol=1e-6)


def test_the_head_reads_the_latents_and_their_noise_level(generator: torch.Generator) -> None:
    head = CommitmentHead(randomised(lambda: build(D)))
    z, mask, ids = normal((1, 4, D), generator), first([4], 4), torch.randint(V, (1, L), generator=generator)
    clean = head.logits(z, mask, ids, torch.zeros(1))
    assert (head.logits(z, mask, ids, torch.ones(1)) - clean).abs().max() > 1e-3
    assert (head.logits(z + 1, mask, ids, torch.zeros(1)) - clean).abs().max() > 1e-3
    every = torch.ones_like(ids).bool()
    nats = -clean.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(head.loss(z, ids, every).double(), nats.mean(1), rtol=0, atol=1e-5)


def test_a_latent_stands_at_the_middle_of_its_tokens(generator: torch.Generator) -> None:
    z, mask, level = normal((1, 4, D), generator), first([4], 4), torch.zeros(1)
    for stride, middles in ((1, [0, 1, 2, 3]), (2, [0.5, 2.5, 4.5, 6.5]), (3, [1, 4, 7, 10])):
        positions = randomised(lambda stride=stride: build(D, stride)).context(z, mask, level).positions
        assert positions.tolist() == middles


def head_tokens(head: CommitmentHead, z: Tensor, start: int) -> Tensor:
    generators = example_generators(7, start, len(z))
    return head.generate(z, torch.ones(z.shape[:2]).bool(), generator=generators).ids


def test_what_the_head_writes_does_not_depend_on_the_batch_and_repeats_with_its_seed(
    generator: torch.Generator,
) -> None:
    head = CommitmentHead(randomised(lambda: build(D)), trust_level=TRUST)
    z = normal((4, 4, D), generator)
    together = head_tokens(head, z, 0)
    assert together.shape == (4, L) and torch.equal(together, head_tokens(head, z, 0))
    assert torch.equal(together, torch.cat([head_tokens(head, z[i : i + 1], i) for i in range(4)]))
    assert not torch.equal(together, head_tokens(head, z, 4))


def test_the_head_blurs_latents_by_its_trust_level_and_says_so(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = CommitmentHead(randomised(lambda: build(D)), trust_level=TRUST)
    monkeypatch.setattr(head, "read", lambda z, mask, u, level, draw: (z, level))
    z, mask = normal((5, 400, D), generator), torch.ones(5, 400).bool()
    blurred, level = head.generate(z, mask, generator=generator)
    head.trust_level = 0.0
    clean, no_level = head.generate(z, mask, generator=generator)
    # 6,000 normal numbers: their rms is known to one part in a hundred (one standard deviation).
    assert abs((blurred - z).square().mean().sqrt() - TRUST) < 5 * 0.01 * TRUST
    assert (level == TRUST).all() and (no_level == 0).all() and torch.equal(clean, z)


def test_networks_with_and_without_latents_are_not_confused() -> None:
    with pytest.raises(ValueError, match="needs a network with latents"):
        CommitmentHead(build(None))
    with pytest.raises(ValueError, match="no latents"):
        LanguageModel(build(D))
    with pytest.raises(ValueError, match="trust_level is -1"):
        CommitmentHead(build(D), trust_level=-1)
