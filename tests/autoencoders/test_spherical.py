"""Laws of the spherical code: every latent has length sqrt(D), whatever the table, and the codebook holds them all."""

import pytest
import torch

from fewstep.autoencoders import SphericalEmbeddings
from fewstep.objectives import Reconstruction
from fewstep.readouts import LinearReadout, token_accuracy
from fewstep.types import TokenBatch
from tests.nn.builders import first, randomised, seeded

V = 11


@pytest.mark.parametrize("latent_dim", [1, 3, 8])
def test_every_latent_has_unit_rms_whatever_the_length_of_its_row(latent_dim: int, generator: torch.Generator) -> None:
    encoder = randomised(lambda: SphericalEmbeddings(V, latent_dim))
    with torch.no_grad():
        encoder.table.weight *= torch.logspace(-6, 6, V)[:, None]
    ids, mask = torch.randint(V, (3, 7), generator=generator), first([7, 2, 0], 7)
    latents = encoder.encode(ids, mask)
    rms = latents.z.square().mean(-1).sqrt()
    torch.testing.assert_close(rms, mask.double(), rtol=0, atol=1e-12)
    assert torch.equal(latents.mask, mask)


def test_the_codebook_is_the_latent_of_each_token() -> None:
    encoder = randomised(lambda: SphericalEmbeddings(V, 3))
    ids = torch.arange(V)[None]
    assert torch.equal(encoder.codebook(), encoder.encode(ids, torch.ones_like(ids)).z[0].detach())
    assert len(encoder.codebook().unique(dim=0)) == V


def test_half_precision_leaves_the_length_exact() -> None:
    encoder = seeded(lambda: SphericalEmbeddings(V, 8)).bfloat16()
    torch.testing.assert_close(encoder.codebook().norm(dim=-1), torch.full((V,), 8**0.5), rtol=1e-6, atol=0)


def test_cross_entropy_under_noise_moves_neighbours_on_the_sphere_apart(generator: torch.Generator) -> None:
    encoder = seeded(lambda: SphericalEmbeddings(4, 2)).train()
    readout = seeded(lambda: LinearReadout(4, 2))
    with torch.no_grad():  # four tokens within a tenth of the circle
        encoder.table.weight.copy_(torch.stack([torch.tensor([1.0, 0.1 * number]) for number in range(4)]))
    ids = torch.arange(4).repeat(16, 1)
    tokens = TokenBatch(ids, torch.ones_like(ids).bool())
    optimizer = torch.optim.Adam([*encoder.parameters(), *readout.parameters()], lr=3e-2)
    for _ in range(150):
        optimizer.zero_grad()
        Reconstruction(noise_level_max=0.5).forward(encoder, readout, tokens, generator=generator).loss.backward()
        optimizer.step()
    code = encoder.codebook()
    closest = (torch.cdist(code, code) + 10 * torch.eye(4)).min()
    assert closest > 1.2, "a square in the circle of radius sqrt(2) has sides of 2"
    assert token_accuracy(readout, code[ids], ids, tokens.mask) == 1
