"""Laws of finite scalar quantisation: the grid, the straight-through gradient, unit variance."""

import pytest
import torch
from torch import Tensor

from fewstep.autoencoders import QuantisedAutoencoder, TransformerAutoencoder
from fewstep.autoencoders.quantised import quantise
from tests.nn.builders import first, normal, randomised

V, D = 11, 3


def build(levels: int = 5, softness: float = 0.0, depth: int = 1) -> QuantisedAutoencoder:
    return QuantisedAutoencoder(V, D, levels=levels, softness=softness, width=8, depth=depth, num_heads=2)


def spread(autoencoder: QuantisedAutoencoder, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and mask of blocks whose latents reach all of [-1, 1], by which the whitening is fitted."""
    with torch.no_grad():
        autoencoder.to_latent.weight *= 3
    ids, mask = torch.randint(V, (40, 24), generator=generator), first([24] * 20 + [9] * 20, 24)
    autoencoder.whitening.fit(*autoencoder.encode_raw(ids, mask))
    return ids, mask


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
def test_hard_latents_take_as_many_values_per_dimension_as_there_are_levels(
    levels: int, generator: torch.Generator
) -> None:
    autoencoder = randomised(lambda: build(levels))
    ids, mask = spread(autoencoder, generator)
    z = autoencoder.encode(ids, mask).z[mask]
    for dimension in range(D):
        values = z[:, dimension].unique()
        assert len(values) == levels
        torch.testing.assert_close(values.diff(), values.diff()[:1].expand(levels - 1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8])
def test_the_grid_is_symmetric_with_the_nearest_value_taken_and_rounding_again_changes_nothing(
    levels: int, generator: torch.Generator
) -> None:
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    u = (2 * normal((500, D), generator)).tanh()
    nearest = grid[(u[..., None] - grid).abs().argmin(-1)]
    rounded = quantise(u, levels)
    torch.testing.assert_close(rounded, nearest, rtol=0, atol=1e-12)
    assert torch.equal(quantise(rounded, levels), rounded)
    for softness in (0.25, 1.0):
        torch.testing.assert_close(
            quantise(u, levels, softness), nearest + softness * (u - nearest), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("softness", [0.0, 0.3])
def test_the_gradient_is_that_of_the_function_without_rounding(softness: float, generator: torch.Generator) -> None:
    rounded, plain = (randomised(lambda s=s: build(softness=s)) for s in (softness, 1.0))
    ids, mask = torch.randint(V, (4, 8), generator=generator), first([8, 8, 3, 5], 8)
    weights = normal((4, 8, D), generator)

    def gradients(autoencoder: QuantisedAutoencoder) -> list[Tensor]:
        used = [value for name, value in autoencoder.named_parameters() if name != "mask_embedding"]
        return list(torch.autograd.grad((autoencoder.encode(ids, mask).z * weights).sum(), used))

    assert not torch.equal(rounded.encode(ids, mask).z, plain.encode(ids, mask).z)
    for left, right in zip(gradients(rounded), gradients(plain), strict=True):
        assert right.abs().max() > 0
        torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_without_rounding_the_latent_is_the_whitened_tanh_of_the_transformers(generator: torch.Generator) -> None:
    soft = randomised(lambda: build(softness=1.0))
    plain = randomised(lambda: TransformerAutoencoder(V, D, width=8, depth=1, num_heads=2))
    ids, mask = torch.randint(V, (4, 8), generator=generator), first([8, 8, 3, 5], 8)
    plain.load_state_dict(soft.state_dict())
    raw, _ = plain.encode_raw(ids, mask)
    expected = soft.whitening(raw.tanh(), mask)
    torch.testing.assert_close(soft.encode(ids, mask).z, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softness", [0.0, 0.5])
def test_the_stored_scale_gives_unit_variance(softness: float, generator: torch.Generator) -> None:
    autoencoder = randomised(lambda: build(softness=softness))
    ids, mask = spread(autoencoder, generator)
    z = autoencoder.encode(ids, mask).z
    torch.testing.assert_close(z[mask].mean(0), torch.zeros(D).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z[mask].square().mean(0), torch.ones(D).double(), rtol=0, atol=1e-4)
    assert (z[~mask] == 0).all()


def test_the_codebook_of_tokens_lies_on_the_grid(generator: torch.Generator) -> None:
    autoencoder = randomised(lambda: build(levels=3, depth=0))
    spread(autoencoder, generator)
    ids = torch.arange(V)[None]
    z = autoencoder.encode(ids, torch.ones_like(ids)).z[0].detach()
    torch.testing.assert_close(autoencoder.codebook(), z, rtol=0, atol=1e-6, check_dtype=False)
    assert all(len(z[:, dimension].unique()) <= 3 for dimension in range(D))


def test_half_precision_has_the_grid_of_full_precision(generator: torch.Generator) -> None:
    autoencoder = randomised(lambda: build(levels=4))  # whose values, thirds, half precision would shift
    ids, mask = spread(autoencoder, generator)
    full = autoencoder.float().encode(ids, mask).z[mask]
    with torch.autocast("cpu", torch.bfloat16):
        half = autoencoder.encode(ids, mask).z[mask]
    assert all(torch.equal(half[:, dimension].unique(), full[:, dimension].unique()) for dimension in range(D))


@pytest.mark.parametrize(("levels", "softness"), [(1, 0.0), (5, -0.1), (5, 1.5), (5, float("nan"))])
def test_impossible_settings_are_refused(levels: int, softness: float) -> None:
    with pytest.raises(ValueError, match=r"QuantisedAutoencoder: (levels is 1|softness is)"):
        build(levels, softness)
