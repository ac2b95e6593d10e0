"""Whatever the decoder, the numbers keep their bounds and are numbers."""

import json
from contextlib import ExitStack
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.diagnostics import (
    CategoricalResponse,
    boundary_distance,
    dabi,
    dabi_flip,
    draw_positions,
    flips,
    noise_robustness,
    normal_boundary,
    results,
    segment_boundary,
    worst_direction,
)
from fewstep.diagnostics.derivatives import Decode
from tests.diagnostics.decoders import SmoothReadout, normal, seeded

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 6),
    vocab_size=st.integers(1, 4),
    exponent=st.floats(-40, 6),
    latent_exponent=st.floats(-6, 4),
    dtype=DTYPES,
    num_probes=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_every_number_is_finite_and_dabi_lies_between_0_and_n(
    n: int,
    vocab_size: int,
    exponent: float,
    latent_exponent: float,
    dtype: torch.dtype,
    num_probes: int | None,
    seed: int,
) -> None:
    smooth = SmoothReadout(n, 2, vocab_size, scale=10.0**exponent, seed=seed, dtype=torch.float32)
    z, other = (10.0**latent_exponent * normal(3, n, seed=s, dtype=torch.float32) for s in (seed, seed + 1))
    positions = draw_positions(3, 2, 2, seeded(seed))

    def decode(z: torch.Tensor) -> torch.Tensor:
        return smooth(z).to(dtype)

    with ExitStack() as stack:
        for module in (results, flips):  # the intervals are not what is tested here
            stack.enter_context(mock.patch.object(module, "NUM_RESAMPLES", 5))
        check(decode, z, other, positions, num_probes)


def check(
    decode: Decode, z: torch.Tensor, other: torch.Tensor, positions: torch.Tensor, num_probes: int | None
) -> None:
    """Every result is fit for JSON, which has no NaN, and DABI keeps its bounds."""
    n, response = z.shape[1], CategoricalResponse()
    normals = normal_boundary(decode, z, positions, max_steps=5)
    segments = segment_boundary(decode, z, other, positions, num_steps=5)
    worst = worst_direction(decode, response, segments, num_iterations=2, generator=seeded())
    for points in (normals, segments, worst):
        found = dabi(decode, response, points, rms=1.0, num_isotropic=2, num_probes=num_probes, generator=seeded())
        json.dumps(found.to_dict(), allow_nan=False)
        for estimate in (found.dabi, found.median, found.pooled):
            assert estimate.value is None or 0 <= estimate.value <= n * (1 + 1e-12)
    json.dumps(boundary_distance(decode, z, positions, generator=seeded()).to_dict(), allow_nan=False)
    json.dumps(dabi_flip(decode, z, positions, num_isotropic=2, generator=seeded()).to_dict(), allow_nan=False)
    ids = decode(z).argmax(-1)
    robustness = noise_robustness(decode, z, ids, ids >= 0, positions, levels=(0.0, 1.0), generator=seeded())
    json.dumps(robustness.to_dict(), allow_nan=False)
