"""Laws of the variational latents: the KL divergence, samples, and what the objective makes of them."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fewstep.autoencoders import Posterior, TransformerAutoencoder, VariationalAutoencoder
from fewstep.errors import UserError
from fewstep.objectives import Reconstruction
from fewstep.readouts import TransformerReadout
from fewstep.training import AutoencoderModule
from fewstep.types import Latents, LossOutput, TokenBatch
from tests.nn.builders import first, normal, randomised, seeded
from tests.runs import Workshop
from tests.training.test_data_module import data_module

V, D = 7, 3
SMALL = {"stride": 2, "width": 8, "depth": 1, "num_heads": 2}


def variational() -> VariationalAutoencoder:
    return randomised(lambda: VariationalAutoencoder(V, D, **SMALL))


def readout() -> TransformerReadout:
    return randomised(lambda: TransformerReadout(V, D, **SMALL))


def tokens_of(generator: torch.Generator) -> TokenBatch:
    return TokenBatch(torch.randint(V, (3, 8), generator=generator), first([8, 5, 2], 8))


def posterior_of(generator: torch.Generator) -> Posterior:
    mask = first([6, 4, 1], 6)
    z = normal((3, 6, D), generator)
    return Posterior(Latents(z * mask[..., None], mask), normal((3, 6, D), generator))


def test_the_divergence_is_that_of_torchs_distributions_over_real_positions(generator: torch.Generator) -> None:
    posterior = posterior_of(generator)
    law = Normal(posterior.mean.z, (posterior.log_variance / 2).exp())
    expected = kl_divergence(law, Normal(0.0, 1.0)) * posterior.mean.mask[..., None]
    torch.testing.assert_close(posterior.kl_nats(), expected.sum((1, 2)), rtol=1e-12, atol=0)


def test_the_divergence_and_its_gradient_vanish_at_the_standard_normal_and_nowhere_near(
    generator: torch.Generator,
) -> None:
    mask = torch.ones(2, 4).bool()
    for shift in (0.0, 0.1):
        z = torch.full((2, 4, D), shift, dtype=torch.float64, requires_grad=True)
        log_variance = torch.full((2, 4, D), shift, dtype=torch.float64, requires_grad=True)
        nats = Posterior(Latents(z, mask), log_variance).kl_nats()
        slopes = torch.autograd.grad(nats.sum(), [z, log_variance])
        assert (nats == 0).all() == (shift == 0)
        assert all((slope == 0).all() == (shift == 0) for slope in slopes)


def test_samples_have_the_mean_and_the_variance_of_the_posterior(generator: torch.Generator) -> None:
    posterior = posterior_of(generator)
    drawn = torch.stack([posterior.sample(generator).z for _ in range(4000)])
    real = posterior.mean.mask
    deviation = (posterior.log_variance / 2).exp()
    assert (((drawn.mean(0) - posterior.mean.z) / deviation)[real].abs() < 5 / 4000**0.5).all()
    assert ((drawn.std(0) / deviation - 1)[real].abs() < 5 / 8000**0.5).all()
    assert (drawn[:, ~real] == 0).all()


def test_encoding_returns_the_mean_of_the_posterior_which_is_the_transformers_latent(
    generator: torch.Generator,
) -> None:
    autoencoder, tokens = variational(), tokens_of(generator)
    plain = seeded(lambda: TransformerAutoencoder(V, D, **SMALL))
    own = {name for name in autoencoder.state_dict() if name.startswith("to_log_variance.")}
    plain.load_state_dict({name: value for name, value in autoencoder.state_dict().items() if name not in own})
    assert len(own) == 2
    for hidden in (None, first([2, 0, 1], 8)):
        mean = autoencoder.posterior(tokens.ids, tokens.mask, hidden).mean
        for encoder in (autoencoder, plain):
            latents = encoder.encode(tokens.ids, tokens.mask, hidden)
            assert torch.equal(latents.z, mean.z) and torch.equal(latents.mask, mean.mask)


def test_a_posterior_starts_as_wide_as_the_data() -> None:
    ids = torch.arange(6)[None]
    posterior = seeded(lambda: VariationalAutoencoder(V, D, **SMALL)).posterior(ids, torch.ones_like(ids))
    assert (posterior.log_variance == 0).all()


def test_the_loss_is_that_of_a_sample_plus_the_weighted_divergence_per_token(generator: torch.Generator) -> None:
    autoencoder, decoder, tokens = variational(), readout(), tokens_of(generator)
    posterior = autoencoder.posterior(tokens.ids, tokens.mask)

    def loss(weight: float) -> LossOutput:
        objective = Reconstruction(noise_level_max=0.0, kl_weight=weight)
        return objective.forward(autoencoder, decoder, tokens, generator=torch.Generator().manual_seed(3))

    sampled = posterior.sample(torch.Generator().manual_seed(3))
    nats = decoder.loss(sampled.z, tokens.ids, tokens.mask)
    kl_nats = posterior.kl_nats() / torch.tensor([8, 5, 2])
    for weight in (0.0, 0.3):
        output = loss(weight)
        torch.testing.assert_close(output.per_example, (nats + weight * kl_nats).detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(output.loss, output.per_example.mean(), rtol=1e-12, atol=0)
        torch.testing.assert_close(output.terms["kl_nats"], kl_nats.mean().detach(), rtol=1e-12, atol=0)
    wide = autoencoder.to_log_variance.bias
    assert not torch.equal(*(torch.autograd.grad(loss(weight).loss, wide)[0] for weight in (0.0, 0.3)))


@pytest.mark.parametrize("masking", [0.0, 0.3])
def test_without_a_posterior_the_loss_and_its_noise_are_the_plain_ones_to_the_digit(
    masking: float, generator: torch.Generator
) -> None:
    autoencoder, decoder = randomised(lambda: TransformerAutoencoder(V, D, **SMALL)), readout()
    tokens, draw = tokens_of(generator), torch.Generator().manual_seed(3)
    hidden = torch.rand(3, 8, generator=draw) < masking if masking else None
    z = autoencoder.encode(tokens.ids, tokens.mask, hidden).z
    level = 0.8 * torch.rand(3, generator=draw)
    z = z + level[:, None, None] * torch.randn(3, 4, D, generator=draw)
    objective = Reconstruction(noise_level_max=0.8, token_masking=masking)
    output = objective.forward(autoencoder, decoder, tokens, generator=torch.Generator().manual_seed(3))
    assert torch.equal(output.per_example, decoder.loss(z, tokens.ids, tokens.mask))
    assert not output.terms


def test_a_divergence_is_asked_only_of_an_encoder_that_has_one(workshop: Workshop) -> None:
    def stage(kind: type[TransformerAutoencoder]) -> AutoencoderModule:
        def build(vocab_size: int) -> TransformerAutoencoder:
            return kind(vocab_size, D, width=8, depth=1, num_heads=2)

        def read(vocab_size: int, latent_dim: int) -> TransformerReadout:
            return TransformerReadout(vocab_size, latent_dim, width=8, depth=1, num_heads=2)

        return AutoencoderModule(data_module(workshop), build, read, Reconstruction(kl_weight=0.1))

    assert stage(VariationalAutoencoder).objective.kl_weight == 0.1
    with pytest.raises(UserError, match=r"kl_weight is 0\.1, but model\.autoencoder has no posterior"):
        stage(TransformerAutoencoder)
    with pytest.raises(ValueError, match="kl_weight is -1"):
        Reconstruction(kl_weight=-1)


def test_every_parameter_of_the_encoder_learns(generator: torch.Generator) -> None:
    autoencoder, decoder, tokens = variational(), readout(), tokens_of(generator)
    objective = Reconstruction(token_masking=0.3)  # whatever the weight of the divergence
    objective.forward(autoencoder, decoder, tokens, generator=generator).loss.backward()
    without: list[str] = []
    for name, parameter in autoencoder.named_parameters():
        gradient: Tensor | None = parameter.grad
        if gradient is None or not gradient.any():
            without.append(name)
    assert not without
