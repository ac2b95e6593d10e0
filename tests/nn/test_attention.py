"""Laws of attention: the softmax that it is, relative positions, causality, caching, padding."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.nn import Context, CrossAttention, SelfAttention
from fewstep.nn.attention import SHORT_SEQUENCE, attend, rotary
from tests.nn.builders import first, normal, randomised


def test_rotary_scores_depend_on_relative_positions_only(generator: torch.Generator) -> None:
    q, k = normal((2, 3, 5, 8), generator), normal((2, 3, 7, 8), generator)

    def scores(shift: float, stretch: float = 1.0) -> Tensor:
        rows, columns = stretch * torch.arange(5.0) + shift, torch.arange(7.0) - 0.5 + shift
        return rotary(rows, 8, q).rotate(q) @ rotary(columns, 8, k).rotate(k).mT

    for shift in (1.0, 17.5, 900.0):
        torch.testing.assert_close(scores(shift), scores(0.0), rtol=0, atol=1e-10)
    assert (scores(0.0, stretch=2.0) - scores(0.0)).abs().max() > 0.1


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


@pytest.mark.parametrize("causal", [False, True])
def test_attention_knows_the_order_of_positions_but_not_where_they_start(
    causal: bool, generator: torch.Generator
) -> None:
    attention = randomised(lambda: SelfAttention(8, 2, causal=causal))
    x = normal((2, 5, 8), generator)
    y, behind_padding = attention(x), attention(torch.cat([9 * x[:, :3], x], 1), ~first([3, 3], 8))
    torch.testing.assert_close(behind_padding[:, 3:], y, rtol=0, atol=1e-10)
    before_padding = attention(torch.cat([x, 9 * x[:, :3]], 1), first([5, 5], 8))
    torch.testing.assert_close(before_padding[:, :5], y, rtol=0, atol=1e-10)
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


def plainly(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """softmax(q k / sqrt d) v over what is seen, row by row of keys taken out."""
    rows = []
    for b, h, n in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).tolist():
        kept = seen.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])[b, h, n]
        weights = (k[b, h][kept] @ q[b, h, n] / q.shape[-1] ** 0.5).softmax(-1)
        rows.append(weights @ v[b, h][kept])
    return torch.stack(rows).view(*q.shape[:3], v.shape[-1])


@pytest.mark.parametrize("of", ["keys", "queries and keys", "examples, queries and keys"])
def test_written_out_attention_is_the_softmax_over_what_is_seen(of: str, generator: torch.Generator) -> None:
    q, k, v = normal((2, 3, 4, 6), generator), normal((2, 3, 5, 6), generator), normal((2, 3, 5, 6), generator)
    shape = {"keys": (2, 1, 1, 5), "queries and keys": (4, 5), "examples, queries and keys": (2, 1, 4, 5)}[of]
    seen = torch.rand(shape, generator=generator) < 0.6
    seen[..., 0] = True
    y = attend(q, k, v, seen)
    torch.testing.assert_close(y, plainly(q, k, v, seen), rtol=0, atol=1e-12)
    torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, attn_mask=seen), rtol=0, atol=1e-12)
    assert torch.equal(attend(q, k, v, torch.ones(1, 1, 1, 5).bool()), attend(q, k, v, None))


@pytest.mark.parametrize("length", [SHORT_SEQUENCE, SHORT_SEQUENCE + 1])
def test_causal_attention_is_the_same_through_either_kernel(length: int, generator: torch.Generator) -> None:
    q, k, v = (normal((1, 2, length, 4), generator) for _ in range(3))
    seen = torch.ones(length, length).bool().tril()
    torch.testing.assert_close(attend(q, k, v, None, causal=True), plainly(q, k, v, seen), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_hidden_stays_finite_under_autocast_even_for_float32_inputs(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    q, k, v = (torch.randn(2, 1, 3, 4, generator=generator, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", dtype):
        y = attend(q, k, v, first([0, 3], 3)[:, None, None])
    slopes = torch.autograd.grad(y.float().square().sum(), (q, k, v))
    assert all(bool(tensor.isfinite().all()) for tensor in (y, *slopes))
    torch.testing.assert_close(y[0].float(), v[0].mean(1, keepdim=True).expand(1, 3, 4), rtol=0, atol=2e-2)
