"""CCI: exact heads, its bounds, and what is said where there is nothing to commit to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.diagnostics.cci import TokenConditionals, cci, cci_curve
from tests.diagnostics.decoders import (
    LOG_2,
    BalancedCopies,
    ParallelConditionals,
    TableReadout,
    committed_and_marginal_nats,
    markov,
    normal,
    plain,
    seeded,
)

UNIFORM_3 = torch.full((3,), 1 / 3, dtype=torch.float64)
SYMMETRIC_CHAIN = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)


@pytest.mark.parametrize(("vocabulary", "num_tokens", "num_written"), [(2, 2, 2), (2, 5, 5), (8, 3, 3), (4, 5, 2)])
def test_copies_of_one_uniform_token_are_resolved_but_for_the_first(
    vocabulary: int, num_tokens: int, num_written: int
) -> None:
    written = None if num_written == num_tokens else (torch.arange(num_tokens) < num_written).expand(3, num_tokens)
    head = BalancedCopies(vocabulary, num_tokens)
    result = cci(head, normal(3, 4), written=written, num_draws=32, generator=seeded())
    assert result["cci"].value == pytest.approx(1 - 1 / num_written, abs=1e-12)
    assert result["cci_marginal_nats"].value == pytest.approx(torch.tensor(vocabulary).log().item(), rel=1e-6)
    assert result["cci_committed_nats"].value == pytest.approx(result["cci_marginal_nats"].value / num_written)
    assert result["cci"].num_examples == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_parallel_readout_has_exactly_0_whatever_its_entropy(dtype: torch.dtype) -> None:
    weight = normal(5, 6 * 7, seed=1)

    def decode(z: Tensor) -> Tensor:
        return (3 * z @ weight).unflatten(1, (6, 7)).to(dtype)

    result = cci(ParallelConditionals(decode), normal(4, 5), num_draws=37, generator=seeded())
    assert result["cci"].value == 0
    assert result["cci"].interval.low == result["cci"].interval.high == 0
    assert result["cci_marginal_nats"].value == result["cci_committed_nats"].value > 0.1


def test_a_markov_chain_has_its_entropy_rate_over_its_marginal_entropy() -> None:
    chain = (UNIFORM_3, SYMMETRIC_CHAIN, 5)
    committed, marginal = committed_and_marginal_nats(*chain)
    result = cci(markov(*chain), normal(2, 2), num_draws=1500, generator=seeded())
    assert result["cci_committed_nats"].value == pytest.approx(committed / 5, rel=1e-9)  # all rows have one entropy
    assert result["cci_marginal_nats"].value == pytest.approx(marginal / 5, rel=2e-3)
    assert result["cci"].value == pytest.approx(1 - committed / marginal, abs=2e-3)


def test_every_draw_weighs_the_same() -> None:
    one_open = torch.tensor([[1.0, 0.0], [0.5, 0.5]])  # first tokens take turns: one leaves the second open
    result = cci(BalancedCopies(2, 2, one_open), normal(1, 2), num_draws=32, generator=seeded())
    marginal = torch.special.entr(torch.tensor([0.75, 0.25], dtype=torch.float64)).sum().item()
    assert result["cci_committed_nats"].value == pytest.approx((LOG_2 + LOG_2 / 2) / 2, rel=1e-12)
    assert result["cci_marginal_nats"].value == pytest.approx((LOG_2 + marginal) / 2, rel=1e-12)


def _certain(z: Tensor) -> Tensor:
    return torch.tensor([1e4, 0.0, -1e4]).expand(len(z), 2, 3)


@pytest.mark.parametrize(
    "conditionals",
    [
        ParallelConditionals(_certain),
        ParallelConditionals(lambda z: torch.zeros(len(z), 4, 1)),
        markov(torch.tensor([1.0, 0.0]), torch.eye(2), 3),
    ],
    ids=["saturated", "one_token_vocabulary", "deterministic_chain"],
)
def test_where_nothing_is_open_cci_is_undetermined_and_says_so(conditionals: TokenConditionals) -> None:
    result = cci(conditionals, normal(2, 3), generator=seeded())
    assert result["cci"].value is None and result["cci"].interval is None
    assert result["cci_marginal_nats"].value == pytest.approx(0, abs=1e-6)
    assert "undetermined" in result.rows[0].note
    assert plain(result)["rows"][0]["estimate"] == {"value": None, "interval": None, "num_examples": 2}


class _Copier(TableReadout):
    """Its second token copies the first with a certainty that falls with the noise it is told of."""

    def __init__(self, level: float) -> None:
        self.seen: list[Tensor] = []
        keep = 1 / (1 + level)
        transition = keep * torch.eye(2) + (1 - keep) * torch.full((2, 2), 0.5)
        super().__init__(markov(torch.tensor([0.5, 0.5]), transition, 2).table)

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Chains (B, 2)."""
        self.seen.append(z)
        return super().draw(z, generator)


def test_a_curve_adds_one_noise_at_every_level_and_tells_the_readout_the_level() -> None:
    heads = {level: _Copier(level) for level in (0.0, 0.5, 2.0)}
    z = normal(8, 3)
    curve = cci_curve(heads.__getitem__, z, (0.0, 0.5, 2.0), generator=seeded())
    assert torch.equal(heads[0.0].seen[0], z)
    torch.testing.assert_close((heads[0.5].seen[0] - z) / 0.5, (heads[2.0].seen[5] - z) / 2.0)
    values = curve.curves["cci"].y
    assert values[0] > values[1] > values[2] > 0
    assert [row.name for row in curve.rows] == ["cci_noise_0", "cci_noise_0.5", "cci_noise_2"]
    assert curve.curves["cci"].x == (0.0, 0.5, 2.0)
    plain(curve)


def test_one_seed_gives_one_result_also_under_inference_mode() -> None:
    chain, z = markov(UNIFORM_3, SYMMETRIC_CHAIN, 4), normal(3, 2)
    first = cci(chain, z, generator=seeded(3))
    with torch.inference_mode():
        assert cci(chain, z.clone(), generator=seeded(3)) == first
    assert cci(chain, z, generator=seeded(4)) != first


def test_too_few_draws_and_bad_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="num_draws is 31: expected at least 32"):
        cci(BalancedCopies(2, 2), normal(2, 3), num_draws=31, generator=seeded())
    for levels in ((), (-0.1, 0.2), (float("nan"),)):
        with pytest.raises(ValueError, match="levels are"):
            cci_curve(_Copier, normal(2, 3), levels, generator=seeded())


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    num_tokens=st.integers(1, 4),
    vocabulary=st.integers(1, 5),
    impossible=st.booleans(),
)
def test_cci_of_any_head_is_within_0_and_1_and_never_nan(
    seed: int, scale: float, num_tokens: int, vocabulary: int, impossible: bool
) -> None:
    table = scale * normal(num_tokens, vocabulary + 1, vocabulary, seed=seed, dtype=torch.float32)
    if impossible and vocabulary > 1:
        table[:, :, seed % vocabulary] = -torch.inf
    result = cci(TableReadout(table), normal(3, 2), generator=seeded(seed))
    plain(result)
    if result["cci"].value is not None:
        assert 0 <= result["cci"].interval.low <= result["cci"].value <= result["cci"].interval.high <= 1
    assert result["cci_marginal_nats"].value >= result["cci_committed_nats"].value - 1e-12
    assert result["cci_marginal_nats"].value <= torch.tensor(float(vocabulary)).log() + 1e-6
