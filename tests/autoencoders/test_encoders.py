"""Promises of every encoder: padding, hidden tokens, codebooks, strides, and that a readout can read it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.autoencoders import (
    QuantisedAutoencoder,
    SphericalEmbeddings,
    TransformerAutoencoder,
    VariationalAutoencoder,
)
from fewstep.errors import UserError
from fewstep.objectives import Reconstruction
from fewstep.readouts import LinearReadout, TransformerReadout, token_accuracy
from fewstep.types import LatentEncoder, TokenBatch
from tests.nn.builders import first, randomised, seeded

V, D = 11, 3
SMALL = {"width": 8, "num_heads": 2}
ENCODERS: dict[str, tuple[int, Callable[[], LatentEncoder]]] = {
    "code": (1, lambda: TransformerAutoencoder(V, D, depth=0, **SMALL)),
    "transformer": (1, lambda: TransformerAutoencoder(V, D, depth=2, **SMALL)),
    "chunks": (3, lambda: TransformerAutoencoder(V, D, stride=3, depth=1, **SMALL)),
    "quantised": (2, lambda: QuantisedAutoencoder(V, D, stride=2, depth=1, **SMALL)),
    "quantised code": (1, lambda: QuantisedAutoencoder(V, D, levels=3, depth=0, **SMALL)),
    "variational": (2, lambda: VariationalAutoencoder(V, D, stride=2, depth=1, **SMALL)),
    "spherical": (1, lambda: SphericalEmbeddings(V, D)),
}
each_encoder = pytest.mark.parametrize(("stride", "build"), ENCODERS.values(), ids=ENCODERS)


def ids_of(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(V, shape, generator=generator)


@each_encoder
def test_padding_changes_no_latent_of_real_tokens_and_a_latent_is_real_when_one_of_its_tokens_is(
    stride: int, build: Callable[[], LatentEncoder], generator: torch.Generator
) -> None:
    encoder, lengths = randomised(build), [5, 12, 7, 0, 1]
    ids, mask = ids_of((5, 12), generator), first(lengths, 12)
    latents = encoder.encode(ids, mask)
    more = torch.cat([torch.where(mask, ids, ids_of((5, 12), generator)), ids_of((5, 6), generator)], 1)
    padded = encoder.encode(more, first(lengths, 18))
    real = encoder.num_latents(12)
    assert real == 12 // stride and latents.z.shape == (5, real, encoder.latent_dim)
    assert latents.mask.sum(1).tolist() == [-(-length // stride) for length in lengths]
    assert torch.equal(padded.mask[:, :real], latents.mask) and not padded.mask[:, real:].any()
    torch.testing.assert_close(padded.z[:, :real], latents.z, rtol=0, atol=1e-10)
    assert (padded.z[~padded.mask] == 0).all()


@pytest.mark.parametrize("name", ["transformer", "variational"])
def test_hidden_tokens_are_not_seen(name: str, generator: torch.Generator) -> None:
    encoder, ids = randomised(ENCODERS[name][1]), ids_of((2, 6), generator)
    every, hidden = torch.ones_like(ids).bool(), first([2, 0], 6)
    other = torch.where(hidden, (ids + 1) % V, ids)
    z = encoder.encode(ids, every, hidden).z
    assert torch.equal(encoder.encode(other, every, hidden).z, z)
    assert (encoder.encode(ids, every).z[0] - z[0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["code", "quantised code", "spherical"])
def test_the_codebook_is_the_latent_of_each_token_in_eval_mode(name: str) -> None:
    encoder, ids = randomised(ENCODERS[name][1]), torch.arange(V)[None]
    if name != "spherical":
        raw, mask = encoder.encode_raw(ids, torch.ones_like(ids))
        encoder.whitening.fit(3 * raw + 1, mask)
    latents = encoder.encode(ids, torch.ones_like(ids)).z[0].detach()
    torch.testing.assert_close(encoder.codebook(), latents, rtol=0, atol=1e-6, check_dtype=False)
    assert latents.std() > 0.1


def test_blocks_that_the_stride_does_not_divide_and_codebooks_of_several_tokens_are_refused() -> None:
    ids = torch.zeros(1, 7).long()
    chunks = seeded(lambda: TransformerAutoencoder(V, D, stride=2, depth=0, **SMALL))
    with pytest.raises(UserError, match=r"7 tokens .* stride 2"):
        chunks.encode(ids, torch.ones_like(ids))
    for encoder, depth, stride in ((chunks, 0, 2), (seeded(ENCODERS["transformer"][1]), 2, 1)):
        with pytest.raises(UserError, match=f"depth {depth} and stride {stride} has no codebook"):
            encoder.codebook()


@pytest.mark.parametrize(
    ("stride", "build"),
    [
        (2, lambda: TransformerAutoencoder(V, 8, stride=2, width=16, depth=1, num_heads=2)),
        (1, lambda: SphericalEmbeddings(V, 8)),
    ],
    ids=["chunks", "spherical"],
)
@pytest.mark.parametrize("kind", [LinearReadout, TransformerReadout])
def test_a_readout_learns_eight_blocks_by_heart(
    stride: int, build: Callable[[], LatentEncoder], kind: type, generator: torch.Generator
) -> None:
    encoder = seeded(build).train()
    sizes = {} if kind is LinearReadout else {"width": 16, "depth": 1, "num_heads": 2}
    readout, ids = seeded(lambda: kind(V, 8, stride=stride, **sizes)), ids_of((8, 6), generator)
    tokens = TokenBatch(ids, torch.ones_like(ids).bool())
    optimizer = torch.optim.Adam([*encoder.parameters(), *readout.parameters()], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        Reconstruction(noise_level_max=0.1).forward(encoder, readout, tokens, generator=generator).loss.backward()
        optimizer.step()
    if hasattr(encoder, "whitening"):
        encoder.whitening.fit(*encoder.encode_raw(tokens.ids, tokens.mask))
    latents = encoder.eval().encode(tokens.ids, tokens.mask)
    assert token_accuracy(readout, latents.z, tokens.ids, tokens.mask) == 1
