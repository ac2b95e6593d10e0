"""A commitment head that starts from a language model is that language model until it has learned to listen."""

import pytest
import torch

from fewstep.readouts import CausalTransformer
from tests.nn.builders import first, normal, randomised, seeded

V, D, L = 7, 3, 5


def head(width: int = 8) -> CausalTransformer:
    return CausalTransformer(V, latent_dim=D, width=width, depth=2, num_heads=2)


def test_it_writes_what_the_language_model_writes_whatever_the_latents(generator: torch.Generator) -> None:
    model = randomised(lambda: CausalTransformer(V, width=8, depth=2, num_heads=2))
    network = randomised(head, seed=3)
    new = network.start_from(model)
    ids = torch.randint(V, (4, L), generator=generator)
    context = network.context(normal((4, L, D), generator), first([L] * 4, L), torch.rand(4, generator=generator))
    torch.testing.assert_close(network(ids, context), model(ids), rtol=0, atol=1e-12)
    assert {name.split(".")[0] for name in new} == {"latents", "level", "blocks"}
    assert all("cross" in name for name in new if name.startswith("blocks"))


def test_it_can_learn_to_listen_from_there(generator: torch.Generator) -> None:
    network = seeded(head)
    network.start_from(seeded(lambda: CausalTransformer(V, width=8, depth=2, num_heads=2), seed=1))
    ids = torch.randint(V, (4, L), generator=generator)
    context = network.context(normal((4, L, D), generator), first([L] * 4, L), torch.rand(4, generator=generator))
    network(ids, context).square().sum().backward()
    assert all(block.cross.out.weight.grad.abs().max() > 0 for block in network.blocks)


def test_another_size_is_refused_naming_both() -> None:
    with pytest.raises(ValueError, match=r"'width': 6.*'width': 8.*same vocabulary, width and depth"):
        head().start_from(CausalTransformer(V, width=6, depth=2, num_heads=1))
