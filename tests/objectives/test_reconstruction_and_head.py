"""Laws of the losses on noised latents: reconstruction, with and without a posterior, and commitment."""

import pytest
import torch
from torch import Tensor

from fewstep.autoencoders import TransformerAutoencoder, VariationalAutoencoder
from fewstep.objectives import HeadTraining, Reconstruction
from fewstep.objectives.stages import noised
from fewstep.readouts import CausalTransformer, CommitmentHead, TransformerReadout
from fewstep.types import Latents, LossOutput, TokenBatch
from tests.nn.builders import first, normal, randomised
from tests.objectives.toys import seed

V, D = 7, 3
SMALL = {"stride": 2, "width": 8, "depth": 1, "num_heads": 2}
MASK = first([8, 5, 2], 8)
READOUT = randomised(lambda: TransformerReadout(V, D, **SMALL))
HEAD = CommitmentHead(randomised(lambda: CausalTransformer(V, latent_dim=D, **SMALL)).double())


def encoder(kind: type[TransformerAutoencoder] = TransformerAutoencoder) -> TransformerAutoencoder:
    return randomised(lambda: kind(V, D, **SMALL))


def batch_of(count: int, generator: torch.Generator) -> tuple[Latents, TokenBatch]:
    """Full blocks, and latents that have nothing to do with them."""
    tokens = TokenBatch(torch.randint(V, (count, 8), generator=generator), torch.ones(count, 8).bool())
    return Latents(normal((count, 4, D), generator), torch.ones(count, 4).bool()), tokens


def reconstructed(tokens: TokenBatch, number: int = 1, training: bool = False, **settings: float) -> LossOutput:
    return Reconstruction(**settings).forward(encoder().train(training), READOUT, tokens, generator=seed(number))


@pytest.mark.parametrize("training", [False, True])
def test_padding_never_contributes_to_reconstruction_and_a_seed_gives_one_loss(
    training: bool, generator: torch.Generator
) -> None:
    ids = torch.randint(V, (3, 8), generator=generator)
    tokens, other = (TokenBatch(i, MASK) for i in (ids, torch.where(MASK, ids, (ids + 1) % V)))
    one, two, three = (
        reconstructed(batch, number, training, token_masking=0.3)
        for batch, number in ((tokens, 1), (other, 1), (tokens, 2))
    )
    torch.testing.assert_close(two.per_example, one.per_example, rtol=0, atol=1e-9)
    assert not torch.equal(three.per_example, one.per_example)
    torch.testing.assert_close(one.loss, one.per_example.mean(), rtol=0, atol=1e-12)
    assert one.loss.requires_grad and not one.per_example.requires_grad


@pytest.mark.parametrize("masking", [0.0, 0.3])
def test_reconstruction_and_its_noise_are_the_plain_ones_to_the_digit(
    masking: float, generator: torch.Generator
) -> None:
    tokens, draw = TokenBatch(torch.randint(V, (3, 8), generator=generator), MASK), seed(1)
    hidden = torch.rand(3, 8, generator=draw) < masking if masking else None
    z = encoder().encode(tokens.ids, tokens.mask, hidden).z
    level = 0.8 * torch.rand(3, generator=draw)
    z = z + level[:, None, None] * torch.randn(3, 4, D, generator=draw)
    output = reconstructed(tokens, noise_level_max=0.8, token_masking=masking)
    assert torch.equal(output.per_example, READOUT.loss(z, tokens.ids, tokens.mask)) and not output.terms


def test_with_a_posterior_the_loss_is_that_of_a_sample_plus_the_weighted_divergence_per_token(
    generator: torch.Generator,
) -> None:
    autoencoder, tokens = (
        encoder(VariationalAutoencoder),
        TokenBatch(torch.randint(V, (3, 8), generator=generator), MASK),
    )
    posterior = autoencoder.posterior(tokens.ids, tokens.mask)
    nats = READOUT.loss(posterior.sample(seed(3)).z, tokens.ids, tokens.mask)
    kl_nats = posterior.kl_nats() / torch.tensor([8, 5, 2])
    slopes = []
    for weight in (0.0, 0.3):
        objective = Reconstruction(noise_level_max=0.0, kl_weight=weight)
        output = objective.forward(autoencoder, READOUT, tokens, generator=seed(3))
        torch.testing.assert_close(output.per_example, (nats + weight * kl_nats).detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(output.terms["kl_nats"], kl_nats.mean().detach(), rtol=1e-12, atol=0)
        slopes.append(torch.autograd.grad(output.loss, autoencoder.to_log_variance.bias)[0])
    assert not torch.equal(*slopes)


def test_noise_levels_are_uniform_up_to_the_maximum_one_an_example(generator: torch.Generator) -> None:
    z = normal((600, 200, D), generator)
    noisy, level = noised(z, 1.5, generator)
    halves = (noisy - z).unflatten(1, (2, 100)).square().mean((2, 3)).sqrt()
    # 300 normal numbers: their rms is known to 1 / sqrt(600), 4.1 %.
    assert ((halves / level[:, None] - 1).abs() < 5 * 0.041).all(), "one level holds for a whole example"
    # Kolmogorov-Smirnov distance to the uniform law within the bound of probability 1e-5.
    steps = torch.arange(1, 601, dtype=torch.float64) / 600
    assert (level.double().sort().values / 1.5 - steps).abs().max() < 2.47 / 600**0.5 + 1 / 600


def test_masking_hides_tokens_from_the_encoder_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    original = TransformerAutoencoder.encode

    def spy(self: TransformerAutoencoder, ids: Tensor, mask: Tensor, hidden: Tensor) -> Latents:
        seen.append(hidden)
        return original(self, ids, mask, hidden)

    monkeypatch.setattr(TransformerAutoencoder, "encode", spy)
    ids = torch.zeros(100, 40).long()
    reconstructed(TokenBatch(ids, torch.ones_like(ids).bool()), token_masking=0.3)
    assert abs(seen[0].double().mean() - 0.3) < 5 * (0.3 * 0.7 / 4000) ** 0.5


def test_commitment_training_is_the_loss_of_the_head_which_is_given_the_level_of_the_noise(
    generator: torch.Generator,
) -> None:
    mask = first([4, 3, 1], 4)
    z, ids = normal((3, 4, D), generator), torch.randint(V, (3, 8), generator=generator)
    output = HeadTraining().forward(HEAD, Latents(z, mask), tokens=TokenBatch(ids, MASK), generator=seed(1))
    noisy, level = noised(z, 2.0, seed(1))
    expected = HEAD.loss(noisy, ids, MASK, level).detach()
    torch.testing.assert_close(output.per_example, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.loss, output.per_example.mean(), rtol=0, atol=1e-12)
    junk, other = torch.where(mask[..., None], z, 50.0), torch.where(MASK, ids, (ids + 1) % V)
    padded = HeadTraining().forward(HEAD, Latents(junk, mask), tokens=TokenBatch(other, MASK), generator=seed(1))
    torch.testing.assert_close(padded.per_example, expected, rtol=0, atol=1e-9)


def test_prefix_dropout_hides_the_earlier_tokens_of_its_share_of_examples_and_changes_no_noise(
    generator: torch.Generator,
) -> None:
    latents, tokens = batch_of(2000, generator)
    plain, dropped = (
        HeadTraining(prefix_dropout=share).forward(HEAD, latents, tokens=tokens, generator=seed(1)).per_example
        for share in (0.0, 0.25)
    )
    hidden = plain != dropped
    assert abs(hidden.double().mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    cut_off = CommitmentHead(HEAD.network, sees_tokens=False)
    cut = HeadTraining().forward(cut_off, latents, tokens=tokens, generator=seed(1))
    torch.testing.assert_close(dropped[hidden], cut.per_example[hidden], rtol=0, atol=1e-9)
