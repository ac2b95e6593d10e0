"""Promises of the image autoencoder: shapes, whitening, derivatives of its decoder."""

import pytest
import torch

from fewstep.errors import UserError
from fewstep.lab.images import Digits, ImageAutoencoder, ImageReconstruction
from tests.lab.images.models import tiny_image_model


def test_after_fit_every_number_of_the_latents_has_unit_variance() -> None:
    autoencoder, images = tiny_image_model().autoencoder, Digits().train()[:256]
    raw = autoencoder.encoder(2 * images - 1).flatten(1)[:, None]
    autoencoder.whitening.fit(raw, torch.ones_like(raw[..., 0], dtype=torch.bool))
    z = autoencoder.encode(images).flatten(1)
    torch.testing.assert_close(z.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(8), rtol=0, atol=1e-3)


def test_the_decoder_has_derivatives_without_jumps() -> None:
    autoencoder, generator = tiny_image_model().autoencoder.double(), torch.Generator().manual_seed(1)
    z, u = torch.randn(2, 1, 2, 2, 2, dtype=torch.float64, generator=generator)

    def slopes(steps: int) -> torch.Tensor:
        """Derivatives along a line, from z to z + u."""
        along = z + torch.linspace(0, 1, steps + 1, dtype=torch.float64).reshape(-1, 1, 1, 1) * u
        return torch.func.jvp(autoencoder.decode, (along,), (u.expand_as(along),))[1]

    difference = (autoencoder.decode(z + 1e-5 * u) - autoencoder.decode(z - 1e-5 * u)) / 2e-5
    torch.testing.assert_close(slopes(1)[:1], difference, rtol=1e-6, atol=1e-8)
    # Half the step, half the change; at the kink of a ReLU the change would stay.
    fine, coarse = (float(slopes(steps).diff(dim=0).abs().max()) for steps in (2000, 1000))
    assert fine == pytest.approx(coarse / 2, rel=0.05)


def test_the_loss_is_the_squared_error_and_noise_comes_from_the_generator() -> None:
    autoencoder, images = tiny_image_model().autoencoder, Digits().held_out(8)

    def loss(level: float, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return ImageReconstruction(noise_level_max=level).forward(autoencoder, images, generator=generator).per_example

    error = (autoencoder.decode(autoencoder.encode(images)) - images).square().mean((1, 2, 3))
    torch.testing.assert_close(loss(0.0, 0), error)
    assert torch.equal(loss(1.0, 0), loss(1.0, 0))
    assert not torch.equal(loss(1.0, 0), loss(1.0, 1))


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(UserError, match="images of 10 pixels a side cannot be halved 2 times"):
        ImageAutoencoder(1, 10)
    with pytest.raises(ValueError, match="width is 0"):
        ImageAutoencoder(1, 8, width=0)
    with pytest.raises(ValueError, match=r"noise_level_max is -1"):
        ImageReconstruction(noise_level_max=-1)
