"""Laws of the grid (its values, its gradient), of the sphere, and of the posterior (divergence, samples)."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fewstep.autoencoders import (
    Posterior,
    QuantisedAutoencoder,
    SphericalEmbeddings,
    TransformerAutoencoder,
    VariationalAutoencoder,
)
from fewstep.autoencoders.variants import quantise
from fewstep.errors import UserError
from fewstep.objectives import Reconstruction
from fewstep.readouts import TransformerReadout
from fewstep.training import AutoencoderModule
from fewstep.types import Latents
from tests.nn.builders import first, normal, randomised, seeded
from tests.runs import Workshop
from tests.training.test_data_module import data_module

V, D = 11, 3
SMALL = {"width": 8, "depth": 1, "num_heads": 2}


def grid(levels: int = 5, softness: float = 0.0) -> QuantisedAutoencoder:
    return QuantisedAutoencoder(V, D, levels=levels, softness=softness, **SMALL)


def spread(autoencoder: QuantisedAutoencoder, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and mask of blocks whose latents reach all of [-1, 1], by which the whitening is fitted."""
    with torch.no_grad():
        autoencoder.to_latent.weight *= 3
    ids, mask = torch.randint(V, (40, 24), generator=generator), first([24] * 20 + [9] * 20, 24)
    autoencoder.whitening.fit(*autoencoder.encode_raw(ids, mask))
    return ids, mask


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
def test_hard_latents_take_as_many_values_as_there_are_levels_under_autocast_too_and_have_unit_variance(
    levels: int, generator: torch.Generator
) -> None:
    autoencoder = randomised(lambda: grid(levels))
    ids, mask = spread(autoencoder, generator)
    z = autoencoder.encode(ids, mask).z
    torch.testing.assert_close(z[mask].mean(0), torch.zeros(D).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z[mask].square().mean(0), torch.ones(D).double(), rtol=0, atol=1e-4)
    full = autoencoder.float().encode(ids, mask).z[mask]
    with torch.autocast("cpu", torch.bfloat16):
        half = autoencoder.encode(ids, mask).z[mask]
    for dimension in range(D):
        values = z[mask][:, dimension].unique()
        assert len(values) == levels
        torch.testing.assert_close(values.diff(), values.diff()[:1].expand(levels - 1), rtol=1e-9, atol=0)
        assert torch.equal(half[:, dimension].unique(), full[:, dimension].unique())


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("softness", [0.0, 0.25, 1.0])
def test_rounding_takes_the_nearest_value_of_a_symmetric_grid_less_its_softness_and_passes_the_gradient(
    levels: int, softness: float, generator: torch.Generator
) -> None:
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)
    u = (2 * normal((500, D), generator)).tanh().requires_grad_()
    nearest = values[(u[..., None] - values).abs().argmin(-1)]
    rounded = quantise(u, levels, softness)
    torch.testing.assert_close(rounded, nearest + softness * (u - nearest), rtol=0, atol=1e-12)
    assert softness or torch.equal(quantise(rounded, levels), rounded), "rounding again changes nothing"
    assert torch.equal(torch.autograd.grad(rounded.sum(), u)[0], torch.ones_like(u))


def test_without_rounding_the_latent_is_the_whitened_tanh_of_the_transformers(generator: torch.Generator) -> None:
    soft, plain = randomised(lambda: grid(softness=1.0)), randomised(lambda: TransformerAutoencoder(V, D, **SMALL))
    ids, mask = torch.randint(V, (4, 8), generator=generator), first([8, 8, 3, 5], 8)
    plain.load_state_dict(soft.state_dict())
    expected = soft.whitening(plain.encode_raw(ids, mask)[0].tanh(), mask)
    torch.testing.assert_close(soft.encode(ids, mask).z, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("levels", "softness"), [(1, 0.0), (5, -0.1), (5, 1.5), (5, float("nan"))])
def test_impossible_settings_are_refused(levels: int, softness: float) -> None:
    with pytest.raises(ValueError, match=r"QuantisedAutoencoder: (levels is 1|softness is)"):
        grid(levels, softness)


@pytest.mark.parametrize("latent_dim", [1, 3, 8])
def test_every_latent_of_the_sphere_has_unit_rms_whatever_the_length_of_its_row(
    latent_dim: int, generator: torch.Generator
) -> None:
    encoder = randomised(lambda: SphericalEmbeddings(V, latent_dim))
    with torch.no_grad():
        encoder.table.weight *= torch.logspace(-6, 6, V)[:, None]
    ids, mask = torch.randint(V, (3, 7), generator=generator), first([7, 2, 0], 7)
    rms = encoder.encode(ids, mask).z.square().mean(-1).sqrt()
    torch.testing.assert_close(rms, mask.double(), rtol=0, atol=1e-12)
    half = encoder.bfloat16().codebook()
    torch.testing.assert_close(half.norm(dim=-1), torch.full((V,), latent_dim**0.5), rtol=1e-6, atol=0)


def posterior_of(generator: torch.Generator) -> Posterior:
    mask = first([6, 4, 1], 6)
    return Posterior(Latents(normal((3, 6, D), generator) * mask[..., None], mask), normal((3, 6, D), generator))


def test_the_divergence_is_that_of_torchs_distributions_over_real_positions(generator: torch.Generator) -> None:
    posterior = posterior_of(generator)
    law = Normal(posterior.mean.z, (posterior.log_variance / 2).exp())
    expected = kl_divergence(law, Normal(0.0, 1.0)) * posterior.mean.mask[..., None]
    torch.testing.assert_close(posterior.kl_nats(), expected.sum((1, 2)), rtol=1e-12, atol=0)


def test_samples_have_the_mean_and_the_variance_of_the_posterior(generator: torch.Generator) -> None:
    posterior = posterior_of(generator)
    drawn = torch.stack([posterior.sample(generator).z for _ in range(4000)])
    real = posterior.mean.mask
    deviation = (posterior.log_variance / 2).exp()
    assert (((drawn.mean(0) - posterior.mean.z) / deviation)[real].abs() < 5 / 4000**0.5).all()
    assert ((drawn.std(0) / deviation - 1)[real].abs() < 5 / 8000**0.5).all()
    assert (drawn[:, ~real] == 0).all()


def test_a_posterior_has_the_transformers_latent_as_mean_and_starts_as_wide_as_the_data(
    generator: torch.Generator,
) -> None:
    autoencoder = seeded(lambda: VariationalAutoencoder(V, D, **SMALL))
    plain = seeded(lambda: TransformerAutoencoder(V, D, **SMALL))
    ids, mask = torch.randint(V, (3, 8), generator=generator), first([8, 5, 2], 8)
    for hidden in (None, first([2, 0, 1], 8)):
        posterior = autoencoder.posterior(ids, mask, hidden)
        assert (posterior.log_variance == 0).all()
        for encoder in (autoencoder, plain):
            assert torch.equal(encoder.encode(ids, mask, hidden).z, posterior.mean.z)


def test_a_divergence_is_asked_only_of_an_encoder_that_has_one(workshop: Workshop) -> None:
    def stage(kind: type[TransformerAutoencoder]) -> AutoencoderModule:
        return AutoencoderModule(
            data_module(workshop),
            lambda vocab_size: kind(vocab_size, D, **SMALL),
            lambda vocab_size, latent_dim: TransformerReadout(vocab_size, latent_dim, **SMALL),
            Reconstruction(kl_weight=0.1),
        )

    assert stage(VariationalAutoencoder).objective.kl_weight == 0.1
    with pytest.raises(UserError, match=r"kl_weight is 0\.1, but model\.autoencoder has no posterior"):
        stage(TransformerAutoencoder)
