"""What a readout still needs, on a code whose likelihood is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.evaluation import reconstruction_bits_per_byte
from fewstep.readouts import ParallelReadout
from fewstep.types import Latents, TokenBatch


class SignCode(nn.Module):
    """Token 0 to latent -1 and token 1 to +1, one dimension, one latent a token."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, ids: Tensor, mask: Tensor) -> Latents:
        return Latents((2.0 * ids - 1)[..., None], mask)


class SignReadout(ParallelReadout):
    """Logits -z, z: right where noise has not turned the sign; nats ln(1 + exp(-2)) on clean latents."""

    stride = 1

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([-z, z], dim=-1)


@pytest.fixture
def tokens() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, (200, 50), generator=generator)
    return TokenBatch(ids, torch.arange(50) < torch.randint(20, 51, (200, 1), generator=generator))


def test_bits_per_byte_weigh_tokens_not_blocks(tokens: TokenBatch) -> None:
    bits = reconstruction_bits_per_byte(SignCode(), SignReadout(), tokens, 1000, batch_size=64)
    nats_per_token = math.log(1 + math.exp(-2))
    assert bits == pytest.approx(int(tokens.mask.sum()) * nats_per_token / math.log(2) / 1000, rel=1e-6)
