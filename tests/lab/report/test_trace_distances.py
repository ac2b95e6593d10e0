"""Boundary distances of whole blocks, in closed form and in slices."""

import torch

from fewstep.evaluation.adapters import decoder_of
from fewstep.lab.report.traces import block_distances, rows_within_memory
from tests.bundles import BLOCK_SIZE, tiny_bundle


def test_of_a_linear_readout_the_distance_is_that_to_the_nearest_half_plane(generator: torch.Generator) -> None:
    """Two positions of one number each, logits (w z, 0): |z| whatever w is, and infinite where w is 0."""
    weights = torch.tensor([3.0, 0.0])

    def decode(z: torch.Tensor) -> torch.Tensor:
        lead = z[..., 0] * weights
        return torch.stack([lead, torch.zeros_like(lead)], -1)

    z = torch.randn(5, 2, 1, generator=generator)
    with torch.inference_mode():
        found = block_distances(lambda rows: decode, z, 2)
    torch.testing.assert_close(found[:, 0], z[:, 0, 0].abs().double())
    assert bool(found[:, 1].isinf().all())
    one_token = block_distances(lambda rows: lambda z: z, z, 2)
    assert bool(one_token.isinf().all())


def test_memory_is_bounded_by_slices_that_change_nothing(generator: torch.Generator) -> None:
    bundle = tiny_bundle()
    decode = decoder_of(bundle.reader())
    z = torch.randn(5, *bundle.latent_shape(), generator=generator)
    sizes: list[int] = []

    def seen(z: torch.Tensor) -> torch.Tensor:
        sizes.append(len(z))
        return decode(z)

    whole = block_distances(lambda rows: seen, z, BLOCK_SIZE)
    sliced = block_distances(lambda rows: seen, z, BLOCK_SIZE, rows_at_once=2)
    torch.testing.assert_close(sliced, whole, rtol=1e-4, atol=1e-6)
    assert sizes == [5, 2, 2, 1]
    assert [rows_within_memory(32, 2048), rows_within_memory(1024, 50_000)] == [128, 1]
