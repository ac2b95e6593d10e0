"""Laws of whitening: exact after fit, affine in evaluation, blind to padding."""

import torch

from fewstep.autoencoders import Whitening
from tests.nn.builders import first, normal

MASK = first([6, 3, 9], 9)


def raw(generator: torch.Generator) -> torch.Tensor:
    return normal((3, 9, 2), generator) * torch.tensor([0.2, 30.0]) + torch.tensor([5.0, -1.0])


def test_after_fit_it_is_one_affine_map_to_zero_mean_and_unit_variance_and_stores_nothing(
    generator: torch.Generator,
) -> None:
    whitening, z = Whitening(2).double(), raw(generator)
    whitening.fit(z, MASK)
    out = whitening.eval()(z, MASK)
    torch.testing.assert_close(out[MASK].mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(out[MASK].var(0, correction=0), torch.ones(2).double(), rtol=0, atol=1e-4)
    assert (out[~MASK] == 0).all()
    before = {name: value.clone() for name, value in whitening.state_dict().items()}
    every = torch.ones_like(MASK)
    a, b, zero = (whitening(x, every) for x in (z, z.flip(0) * 3, z * 0))
    torch.testing.assert_close(
        whitening(z + z.flip(0) * 3, every) - zero, (a - zero) + (b - zero), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(whitening(z[1:2], every[1:2]), a[1:2], rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in whitening.state_dict().items())


def test_training_whitens_by_the_batch_and_moves_the_stored_statistics_towards_it(generator: torch.Generator) -> None:
    whitening, z = Whitening(2, momentum=0.25).double(), raw(generator)
    out = whitening.train()(torch.where(MASK[..., None], z, 1e6), MASK)
    mean, variance = z[MASK].mean(0), z[MASK].var(0, correction=0)
    torch.testing.assert_close(out[MASK].mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(out[MASK].var(0, correction=0), torch.ones(2).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(whitening.mean, 0.25 * mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(whitening.variance, 0.75 + 0.25 * variance, rtol=1e-12, atol=0)


def test_the_batch_statistics_carry_gradient_so_scale_cannot_be_inflated(generator: torch.Generator) -> None:
    whitening, z = Whitening(2).double(), raw(generator)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    weights = normal((3, 9, 2), generator)
    (slope,) = torch.autograd.grad((whitening(scale * z, MASK) * weights).sum(), scale)
    assert slope.abs() < 1e-3


def test_a_batch_that_is_not_finite_leaves_the_stored_statistics_as_they_are(generator: torch.Generator) -> None:
    whitening, z = Whitening(2), raw(generator).float()
    z[0, 0, 0] = torch.nan
    whitening(z, MASK)
    assert whitening.mean[0] == 0
    assert whitening.variance[0] == 1
    other = Whitening(2)
    other(torch.nan_to_num(z), MASK)
    assert torch.equal(whitening.mean[1], other.mean[1])
