"""Laws of attention: relative positions, causality, caching, padding."""

import pytest
import torch

from fewstep.nn import Context, CrossAttention, SelfAttention
from fewstep.nn.attention import rotary
from tests.nn.builders import first, normal, randomised


def test_rotary_scores_depend_on_relative_positions_only(generator: torch.Generator) -> None:
    q, k = normal((2, 3, 5, 8), generator), normal((2, 3, 7, 8), generator)

    def scores(shift: float, stretch: float = 1.0) -> torch.Tensor:
        rows, columns = stretch * torch.arange(5.0) + shift, torch.arange(7.0) - 0.5 + shift
        return rotary(rows, 8, q).rotate(q) @ rotary(columns, 8, k).rotate(k).mT

    for shift in (1.0, 17.5, 900.0):
        torch.testing.assert_close(scores(shift), scores(0.0), rtol=0, atol=1e-10)
    assert (scores(0.0, stretch=2.0) - scores(0.0)).abs().max() > 0.1


def test_rotary_turns_a_vector_without_changing_its_length(generator: torch.Generator) -> None:
    x = normal((1, 1, 4, 6), generator)
    turned = rotary(torch.tensor([0.0, 1.0, 2.5, 40.0]), 6, x).rotate(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_an_odd_head_dimension_and_an_indivisible_width_are_refused() -> None:
    with pytest.raises(ValueError, match="even head dimension, got 3"):
        SelfAttention(6, 2)
    with pytest.raises(ValueError, match="width 10 is not divisible by num_heads 4"):
        SelfAttention(10, 4)


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 3, 2], [1, 8]])
def test_causal_attention_in_chunks_with_a_cache_equals_the_whole(
    chunks: list[int], generator: torch.Generator
) -> None:
    attention = randomised(lambda: SelfAttention(8, 2, causal=True))
    x, cache = normal((2, 9, 8), generator), attention.new_cache(9)
    parts = [attention(part, cache=cache) for part in x.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), attention(x), rtol=0, atol=1e-12)
    assert len(cache) == 9


def test_causal_attention_with_a_mask_sees_neither_padding_nor_future(generator: torch.Generator) -> None:
    attention = randomised(lambda: SelfAttention(8, 2, causal=True))
    x, mask = normal((2, 6, 8), generator), first([4, 6], 6)
    y = attention(x, mask)
    for row, length in enumerate((4, 6)):
        alone = attention(x[row : row + 1, :length])
        torch.testing.assert_close(y[row : row + 1, :length], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_knows_the_order_of_positions_but_not_where_they_start(
    causal: bool, generator: torch.Generator
) -> None:
    attention = randomised(lambda: SelfAttention(8, 2, causal=causal))
    x = normal((2, 5, 8), generator)
    y, behind_padding = attention(x), attention(torch.cat([9 * x[:, :3], x], 1), ~first([3, 3], 8))
    torch.testing.assert_close(behind_padding[:, 3:], y, rtol=0, atol=1e-10)
    swapped = attention(x[:, [1, 0, 2, 3, 4]])
    assert (swapped[:, 4] - y[:, 4]).abs().max() > 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_without_any_real_position_stays_finite_in_value_and_gradient(
    causal: bool, generator: torch.Generator
) -> None:
    attention = randomised(lambda: SelfAttention(8, 2, causal=causal))
    cross = randomised(lambda: CrossAttention(8, 2))
    x, mask = normal((2, 5, 8), generator).requires_grad_(), first([0, 5], 5)
    y = cross(attention(x, mask), Context(x, mask, torch.arange(5)))
    (slope,) = torch.autograd.grad(y.square().sum(), x)
    assert bool(y.isfinite().all()) and bool(slope.isfinite().all())


def test_cross_attention_depends_on_where_query_and_context_stand_relative_to_each_other(
    generator: torch.Generator,
) -> None:
    cross = randomised(lambda: CrossAttention(8, 2))
    x, states, mask = normal((1, 4, 8), generator), normal((1, 3, 8), generator), first([3], 3)
    near, far = (Context(states, mask, torch.tensor([0.5, 2.5, 4.5]) + shift) for shift in (0, 10))
    later = rotary(torch.arange(10, 14), 4, x)
    here = cross(x, near)
    torch.testing.assert_close(cross(x, far, later), here, rtol=0, atol=1e-10)
    assert (cross(x, near, later) - here).abs().max() > 1e-3


def test_a_context_projected_beforehand_gives_the_same_and_its_rows_are_those_of_the_batch(
    generator: torch.Generator,
) -> None:
    cross = randomised(lambda: CrossAttention(8, 2))
    x, states, mask = normal((3, 4, 8), generator), normal((3, 5, 8), generator), first([5, 2, 4], 5)
    context, kept = Context(states, mask, torch.arange(5) + 0.5), torch.tensor([True, False, True])
    projected, y = cross.project(context).contiguous(), cross(x, context)
    assert torch.equal(cross(x, projected), y)
    torch.testing.assert_close(cross(x[kept], projected.rows(kept)), y[kept], rtol=0, atol=1e-12)
