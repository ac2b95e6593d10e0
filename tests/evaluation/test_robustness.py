"""Accuracy under noise, on a code whose error probability is known."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.evaluation import noise_robustness, reconstruction_bits_per_byte
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


def test_accuracy_is_the_probability_that_noise_keeps_the_sign(tokens: TokenBatch, generator: torch.Generator) -> None:
    levels = (0.0, 0.4, 1.0, 2.0)
    result = noise_robustness(SignCode(), SignReadout(), tokens, generator=generator, levels=levels, batch_size=20)
    expected = [1.0, *(0.5 * (1 + math.erf(1 / level / math.sqrt(2))) for level in levels[1:])]
    assert result.accuracies == pytest.approx(expected, abs=0.02)
    assert result.num_tokens == int(tokens.mask.sum())
    assert result.num_batches == 10
    per_batch = math.sqrt(expected[2] * (1 - expected[2]) / (result.num_tokens / 10))
    assert result.spreads[0] == 0
    assert result.spreads[2] == pytest.approx(per_batch, rel=0.7)
    assert json.loads(result.to_json())["levels"] == list(levels)
    assert result.to_markdown().splitlines()[2].count("|") == len(levels) + 2


def test_bits_per_byte_weigh_tokens_not_blocks(tokens: TokenBatch) -> None:
    bits = reconstruction_bits_per_byte(SignCode(), SignReadout(), tokens, 1000, batch_size=64)
    nats_per_token = math.log(1 + math.exp(-2))
    assert bits == pytest.approx(int(tokens.mask.sum()) * nats_per_token / math.log(2) / 1000, rel=1e-6)


def test_one_block_or_a_negative_level_is_refused(tokens: TokenBatch, generator: torch.Generator) -> None:
    one = TokenBatch(tokens.ids[:1], tokens.mask[:1])
    with pytest.raises(ValueError, match="1 blocks"):
        noise_robustness(SignCode(), SignReadout(), one, generator=generator)
    with pytest.raises(ValueError, match=r"levels \[-0\.1\]"):
        noise_robustness(SignCode(), SignReadout(), tokens, generator=generator, levels=(-0.1,))
