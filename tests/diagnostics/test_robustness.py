"""Token accuracy of displaced latents against what geometry says it is."""

import json
import math

import pytest
import torch

from fewstep.diagnostics import NoiseRobustness, noise_robustness
from tests.diagnostics.decoders import ConstantReadout, normal, seeded, two_token_readout

N = 16
AXES = torch.eye(N, dtype=torch.float64)


def measure(levels: tuple[float, ...], mask: torch.Tensor | None = None) -> NoiseRobustness:
    """2000 latents of ones, so rms is 1, with two tokens: each is at distance 1 from its flip, along its own axis."""
    z, decode = torch.ones(2000, N, dtype=torch.float64), two_token_readout(AXES[0], AXES[1])
    ids = decode(z).argmax(-1)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    positions = torch.tensor([[1]]).expand(2000, 1)
    return noise_robustness(decode, z, ids, mask, positions, levels=levels, generator=seeded())


def test_isotropic_accuracy_is_the_normal_distribution_at_the_distance() -> None:
    found = measure((0.0, 0.5, 1.0))
    for level, estimate in zip((0.5, 1.0), found.isotropic[1:], strict=True):
        assert estimate.value == pytest.approx(0.5 * math.erfc(-1 / level / math.sqrt(2)), abs=0.02)
    assert found.isotropic[0].value == 1
    assert found.isotropic_at_positions[2].value == pytest.approx(found.isotropic[2].value, abs=0.03)


def test_the_same_length_along_the_normal_breaks_the_token_as_soon_as_it_reaches_the_distance() -> None:
    found = measure((0.0, 0.24, 0.26, 0.99, 1.01))  # times sqrt(16): 0.96 and 1.04
    assert [one.value for one in found.aligned] == [1, 1, 0, 0, 0]
    assert [one.value for one in found.aligned_one_number] == [1, 1, 1, 1, 0]


def test_padding_does_not_count() -> None:
    mask = torch.ones(2000, 2, dtype=torch.bool)
    mask[:, 1] = torch.arange(2000) < 500
    found = measure((0.5,), mask)
    assert (found.num_tokens, found.num_points) == (2500, 500)
    assert found.aligned[0].num_examples == found.isotropic_at_positions[0].num_examples == 500


def test_without_positions_isotropic_accuracy_is_the_same_and_nothing_else_is_there() -> None:
    z, decode = torch.ones(2000, N, dtype=torch.float64), two_token_readout(AXES[0], AXES[1])
    ids = decode(z).argmax(-1)
    found = noise_robustness(decode, z, ids, ids >= 0, None, levels=(0.0, 0.5), generator=seeded())
    looked = measure((0.0, 0.5))
    assert [one.value for one in found.isotropic] == [one.value for one in looked.isotropic]
    assert (found.aligned, found.aligned_one_number, found.isotropic_at_positions, found.num_points) == ((), (), (), 0)
    assert [row.name for row in found.rows()] == ["noise_accuracy_at_0", "noise_accuracy_at_0.5"]
    assert found.picture() is not None


def test_the_result_becomes_rows_json_and_a_picture() -> None:
    found = measure((0.0, 0.4))
    assert [row.name for row in found.rows()][2:] == ["noise_accuracy_at_0.4", "aligned_accuracy_at_0.4"]
    assert json.loads(found.to_json())["levels"] == [0.0, 0.4]
    picture = found.picture()
    assert picture is not None
    assert len(picture.series) == 4


def test_a_constant_readout_of_one_token_is_robust_to_everything() -> None:
    z = normal(5, 4)
    ids = torch.zeros(5, 3, dtype=torch.int64)
    found = noise_robustness(
        ConstantReadout(normal(3, 1)), z, ids, ids == 0, torch.zeros(5, 2, dtype=torch.int64), generator=seeded()
    )
    assert all(one.value == 1 for one in (*found.isotropic, *found.aligned))


def test_negative_levels_and_shapes_that_do_not_fit_are_refused() -> None:
    decode, z, ids = two_token_readout(AXES[0]), normal(5, N), torch.zeros(5, 1, dtype=torch.int64)
    for levels, mask in (((-0.1,), ids == 0), ((), ids == 0), ((0.1,), (ids == 0)[:3])):
        with pytest.raises(ValueError, match="levels of at least 0"):
            noise_robustness(decode, z, ids, mask, ids, levels=levels, generator=seeded())
