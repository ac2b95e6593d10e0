"""Laws of pairs of times: their order, their shares, and the law of the single draw."""

import pytest
import torch
from torch import Tensor

from fewstep.objectives import TimePairs
from fewstep.schedules import LogitNormalTime, TimeSampler, UniformTime

both_samplers = pytest.mark.parametrize(
    "sampler", [UniformTime(), LogitNormalTime(-0.4, 1.0)], ids=["uniform", "logit"]
)


@both_samplers
@pytest.mark.parametrize(("instant", "end"), [(0.5, 0.1), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.3, 0.6)])
@pytest.mark.parametrize("count", [1, 3, 5, 20])
def test_times_are_in_order_and_shares_are_kept(
    sampler: TimeSampler, instant: float, end: float, count: int, generator: torch.Generator
) -> None:
    pairs = TimePairs(sampler, instant_share=instant, end_share=end)
    t, s = pairs.sample(count, generator, "cpu")
    first, last = pairs.instant(count), pairs.ending(count)
    assert t.shape == s.shape == (count,) and t.dtype == s.dtype == torch.float32
    assert ((t > 0) & (t < 1) & (t <= s) & (s <= 1)).all()
    assert torch.equal(t[:first], s[:first]), "those with s = t come first"
    assert (s[count - last :] == 1).all(), "those with s = 1 come last"
    middle = slice(first, count - last)
    assert ((t[middle] < s[middle]) & (s[middle] < 1)).all()
    # Rounding may give either share half an example too many or too few, or cut the last one short.
    assert abs(first - instant * count) <= 0.5 and -1 <= last - end * count <= 0.5
    assert first + last <= count


def assert_quantiles(times: Tensor, expected: Tensor, count: int) -> None:
    """Five standard errors of the empirical distribution at each of the given quantiles, a half."""
    assert abs((times < expected).double().mean() - 0.5) < 5 * 0.5 / count**0.5


def test_single_draws_have_the_samplers_law_and_the_others_that_of_the_smaller_and_larger_of_two(
    generator: torch.Generator,
) -> None:
    count = 8000
    pairs = TimePairs(UniformTime(stratified=False), instant_share=0.25, end_share=0.25)
    t, s = pairs.sample(count, generator, "cpu")
    median_of_smaller = 1 - 0.5**0.5
    assert_quantiles(t[:2000], torch.tensor(0.5), 2000)
    assert_quantiles(t[6000:], torch.tensor(0.5), 2000)
    assert_quantiles(t[2000:6000], torch.tensor(median_of_smaller), 4000)
    assert_quantiles(s[2000:6000], torch.tensor(1 - median_of_smaller), 4000)


def test_the_same_seed_gives_the_same_pairs() -> None:
    one, two, three = (
        TimePairs(UniformTime()).sample(6, torch.Generator().manual_seed(number), "cpu")[0] for number in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize(("instant", "end"), [(-0.1, 0.5), (0.5, -0.1), (0.6, 0.6)])
def test_shares_out_of_range_are_refused(instant: float, end: float) -> None:
    with pytest.raises(ValueError, match="expected shares"):
        TimePairs(UniformTime(), instant_share=instant, end_share=end)
