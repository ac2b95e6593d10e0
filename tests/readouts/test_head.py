"""Laws of the head that starts from a language model, and of the head cut off from earlier tokens."""

import pytest
import torch

from fewstep.diagnostics.cci import cci
from fewstep.evaluation.adapters import HeadConditionals
from fewstep.readouts import CausalTransformer, CommitmentHead
from tests.nn.builders import first, normal, randomised

V, D, B, L = 7, 3, 5, 6


def head() -> CommitmentHead:
    return CommitmentHead(randomised(lambda: CausalTransformer(V, latent_dim=D, width=8, depth=2, num_heads=2)))


def cut_off(head: CommitmentHead) -> CommitmentHead:
    return CommitmentHead(head.network, head.trust_level, sees_tokens=False)


def inputs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, mask, ids, levels."""
    ids = torch.randint(V, (B, L), generator=generator)
    return normal((B, L, D), generator), first([L] * B, L), ids, torch.rand(B, generator=generator)


def test_cut_off_logits_do_not_hang_on_ids_but_on_latents_and_level(generator: torch.Generator) -> None:
    on, (z, mask, ids, level) = head(), inputs(generator)
    off = cut_off(on)
    other = (ids + 1) % V
    assert torch.equal(off.logits(z, mask, ids, level), off.logits(z, mask, other, level))
    assert (on.logits(z, mask, ids, level) - on.logits(z, mask, other, level)).abs()[:, 1:].max() > 1e-3
    assert (off.logits(z + 1, mask, ids, level) - off.logits(z, mask, ids, level)).abs().max() > 1e-3
    assert (off.logits(z, mask, ids, level + 1) - off.logits(z, mask, ids, level)).abs().max() > 1e-3
    # The first token has nothing before it: there the two are one.
    torch.testing.assert_close(off.logits(z, mask, ids, level)[:, 0], on.logits(z, mask, ids, level)[:, 0])


def test_cci_is_exactly_zero_without_earlier_tokens_and_not_with_them(generator: torch.Generator) -> None:
    on, (z, *_) = head(), inputs(generator)
    for at_once in (1, 8):
        off = cci(HeadConditionals(cut_off(on), 0.5), z, draws_at_once=at_once, generator=generator)
        assert off["cci"].value == 0 and off["cci"].interval.low == off["cci"].interval.high == 0
        assert off["cci_marginal_nats"].value > 0.1
    assert cci(HeadConditionals(on, 0.5), z, generator=generator)["cci"].interval.low > 1e-3


def test_rows_that_see_no_tokens_are_those_of_the_cut_off_head(generator: torch.Generator) -> None:
    on, (z, mask, ids, level) = head(), inputs(generator)
    sees = torch.tensor([True, False, True, False, True])
    mixed = on.loss(z, ids, mask, level, sees)
    plain, cut = (one.loss(z, ids, mask, level) for one in (on, cut_off(on)))
    torch.testing.assert_close(mixed, torch.where(sees, plain, cut), rtol=0, atol=1e-10)
    assert (plain - cut).abs().min() > 1e-4
    nats = on.token_nats(z, ids, mask, level, sees)
    torch.testing.assert_close(nats.mean(1), mixed, rtol=0, atol=1e-6)


def test_from_a_language_model_it_starts_by_writing_the_same_whatever_the_latents(generator: torch.Generator) -> None:
    model = randomised(lambda: CausalTransformer(V, width=8, depth=2, num_heads=2), seed=3)
    network, (z, mask, ids, level) = head().network, inputs(generator)
    new = network.start_from(model)
    torch.testing.assert_close(network(ids, network.context(z, mask, level)), model(ids), rtol=0, atol=1e-12)
    assert {name.split(".")[0] for name in new} == {"latents", "level", "blocks"}
    assert all("cross" in name for name in new if name.startswith("blocks"))
    with pytest.raises(ValueError, match=r"'width': 6.*'width': 8.*same vocabulary, width and depth"):
        network.start_from(CausalTransformer(V, width=6, depth=2, num_heads=1))
