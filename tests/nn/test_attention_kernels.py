"""Which kernel attention takes, and that all of them give the same."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.nn import Context, CrossAttention, SelfAttention
from fewstep.nn.attention import SHORT_SEQUENCE, attend
from tests.nn.builders import first, normal, randomised


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


def calls_of_sdpa(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The keywords of every call of torch's fused attention from now on."""
    calls: list[dict[str, object]] = []
    plain: Callable[..., Tensor] = F.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, **given: object) -> Tensor:
        calls.append(given)
        return plain(q, k, v, **given)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    return calls


def test_long_sequences_take_the_fused_kernel_and_causal_ones_hold_no_mask(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    calls = calls_of_sdpa(monkeypatch)
    x = normal((1, SHORT_SEQUENCE + 1, 4), generator)
    mask = torch.ones(x.shape[:2]).bool()
    randomised(lambda: SelfAttention(4, 2))(x, mask)
    randomised(lambda: SelfAttention(4, 2, causal=True))(x)
    randomised(lambda: SelfAttention(4, 2, causal=True))(x, mask)
    randomised(lambda: CrossAttention(4, 2))(x[:, :3], Context(x, mask, torch.arange(x.shape[1])))
    assert [call["is_causal"] for call in calls] == [False, True, False, False]
    assert [call["attn_mask"] is None for call in calls] == [False, True, False, False]


def test_every_sequence_on_an_accelerator_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of_sdpa(monkeypatch)
    with torch.device("meta"):  # stands for any device that is no CPU
        SelfAttention(4, 2)(torch.zeros(1, 3, 4))
        SelfAttention(4, 2, causal=True)(torch.zeros(1, 3, 4))
        CrossAttention(4, 2)(
            torch.zeros(1, 3, 4), Context(torch.zeros(1, 2, 4), torch.ones(1, 2).bool(), torch.zeros(2))
        )
    assert len(calls) == 3
