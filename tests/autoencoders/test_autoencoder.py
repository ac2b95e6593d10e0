"""Promises of the encoder: padding, hidden tokens, its codebook, strides."""

import pytest
import torch
from torch import Tensor

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.errors import UserError
from fewstep.objectives import Reconstruction
from fewstep.readouts import LinearReadout, ParallelReadout, TransformerReadout, token_accuracy
from fewstep.types import TokenBatch
from tests.nn.builders import first, randomised, seeded

V, D = 11, 3


def ids_of(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(V, shape, generator=generator)


def build(stride: int = 1, depth: int = 2) -> TransformerAutoencoder:
    return TransformerAutoencoder(V, D, stride=stride, width=8, depth=depth, num_heads=2)


@pytest.mark.parametrize(("stride", "depth"), [(1, 0), (1, 2), (2, 2), (3, 1)])
def test_padding_changes_no_latent_of_real_tokens(stride: int, depth: int, generator: torch.Generator) -> None:
    autoencoder = randomised(lambda: build(stride, depth))
    ids, mask = ids_of((3, 12), generator), first([5, 12, 7], 12)
    z = autoencoder.encode(ids, mask)
    more = torch.cat([torch.where(mask, ids, ids_of((3, 12), generator)), ids_of((3, 6), generator)], 1)
    padded = autoencoder.encode(more, first([5, 12, 7], 18))
    real = 12 // stride
    assert torch.equal(padded.mask[:, :real], z.mask) and not padded.mask[:, real:].any()
    torch.testing.assert_close(padded.z[:, :real], z.z, rtol=0, atol=1e-10)
    assert (padded.z[~padded.mask] == 0).all()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_latent_is_real_when_one_of_its_tokens_is(stride: int, generator: torch.Generator) -> None:
    lengths = [0, 1, 5, 12]
    mask = seeded(lambda: build(stride)).encode(ids_of((4, 12), generator), first(lengths, 12)).mask
    assert mask.sum(1).tolist() == [-(-length // stride) for length in lengths]


def test_hidden_tokens_are_not_seen(generator: torch.Generator) -> None:
    autoencoder, ids = randomised(build), ids_of((2, 6), generator)
    every, hidden = torch.ones_like(ids).bool(), first([2, 0], 6)
    other = torch.where(hidden, (ids + 1) % V, ids)
    z = autoencoder.encode(ids, every, hidden).z
    assert torch.equal(autoencoder.encode(other, every, hidden).z, z)
    assert (autoencoder.encode(ids, every).z[0] - z[0]).abs().max() > 1e-2


def test_the_codebook_is_the_latent_of_each_token_in_eval_mode() -> None:
    autoencoder = randomised(lambda: build(depth=0))
    ids = torch.arange(V)[None]
    raw, mask = autoencoder.encode_raw(ids, torch.ones_like(ids))
    autoencoder.whitening.fit(3 * raw + 1, mask)
    latents = autoencoder.encode(ids, torch.ones_like(ids))
    torch.testing.assert_close(autoencoder.codebook(), latents.z[0].detach(), rtol=0, atol=1e-6, check_dtype=False)
    assert latents.z.std() > 0.1


@pytest.mark.parametrize(("stride", "depth"), [(1, 1), (2, 0)])
def test_no_codebook_where_a_latent_depends_on_several_tokens(stride: int, depth: int) -> None:
    with pytest.raises(UserError, match=f"depth {depth} and stride {stride} has no codebook"):
        seeded(lambda: build(stride, depth)).codebook()


def test_a_block_that_the_stride_does_not_divide_is_refused_by_both_numbers(generator: torch.Generator) -> None:
    ids = ids_of((1, 7), generator)
    with pytest.raises(UserError, match=r"7 tokens .* stride 2"):
        seeded(lambda: build(stride=2)).encode(ids, torch.ones_like(ids))


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_stride_two_learns_eight_blocks_by_heart(kind: str, generator: torch.Generator) -> None:
    autoencoder = seeded(lambda: TransformerAutoencoder(V, 8, stride=2, width=16, depth=1, num_heads=2)).train()

    def readout_of() -> ParallelReadout:
        if kind == "linear":
            return LinearReadout(V, 8, stride=2)
        return TransformerReadout(V, 8, stride=2, width=16, depth=1, num_heads=2)

    readout = seeded(readout_of)
    ids = ids_of((8, 6), generator)
    tokens = TokenBatch(ids, torch.ones_like(ids).bool())
    objective = Reconstruction(noise_level_max=0.1)
    optimizer = torch.optim.Adam([*autoencoder.parameters(), *readout.parameters()], lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective.forward(autoencoder, readout, tokens, generator=generator).loss.backward()
        optimizer.step()
    raw, mask = autoencoder.encode_raw(tokens.ids, tokens.mask)
    autoencoder.whitening.fit(raw, mask)
    latents = autoencoder.eval().encode(tokens.ids, tokens.mask)
    assert token_accuracy(readout, latents.z, tokens.ids, tokens.mask) == 1
