"""Losses over a large vocabulary: the same numbers as from all logits, which are never held at once."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.readouts import (
    CausalTransformer,
    CommitmentHead,
    LanguageModel,
    LinearReadout,
    TransformerReadout,
    categorical,
    token_accuracy,
)
from tests.nn.builders import first, normal, randomised

V, D = 101, 3


class LargestTensor(TorchDispatchMode):
    """The most numbers that one result of an operation has held."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [tensor.numel() for tensor in tree_leaves(made) if isinstance(tensor, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


def few_logits(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let losses and readouts hold only that many logits at once."""
    monkeypatch.setattr(categorical, "MAX_LOGITS", number)


def with_gradients(module: nn.Module, loss: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The loss of each example, and the gradients of a weighted sum of them."""
    value = loss()
    weights = torch.linspace(0.3, 1.7, len(value), dtype=value.dtype)
    return value.detach(), list(torch.autograd.grad((weights * value).sum(), list(module.parameters())))


def causal(latent_dim: int | None) -> CausalTransformer:
    return CausalTransformer(V, latent_dim=latent_dim, width=8, depth=1, num_heads=2)


def losses() -> dict[str, tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """Every loss over a vocabulary by name: what is trained, and the loss of latents, ids and mask."""
    linear = randomised(lambda: LinearReadout(V, D, stride=2))
    transformer = randomised(lambda: TransformerReadout(V, D, stride=2, width=8, depth=1, num_heads=2))
    network = randomised(lambda: CausalTransformer(V, latent_dim=D, stride=2, width=8, depth=1, num_heads=2))
    language = randomised(lambda: causal(None))
    level = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    head, model = CommitmentHead(network), LanguageModel(language)
    return {
        "linear readout": (linear, linear.loss),
        "transformer readout": (transformer, transformer.loss),
        "commitment head": (network, lambda z, ids, mask: head.loss(z, ids, mask, level)),
        "language model": (language, lambda z, ids, mask: model.loss(ids, mask)),
    }


@pytest.mark.parametrize("name", list(losses()))
@pytest.mark.parametrize("max_logits", [1, 2 * V, 5 * V + 3])
def test_a_loss_in_parts_is_the_loss_of_all_logits_and_so_are_its_gradients(
    name: str, max_logits: int, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    module, loss = losses()[name]
    z, ids, mask = normal((3, 4, D), generator), torch.randint(V, (3, 8), generator=generator), first([8, 5, 2], 8)
    value, gradients = with_gradients(module, lambda: loss(z, ids, mask))
    few_logits(monkeypatch, max_logits)
    with LargestTensor() as largest:
        value_in_parts, gradients_in_parts = with_gradients(module, lambda: loss(z, ids, mask))
    torch.testing.assert_close(value_in_parts, value, rtol=0, atol=1e-12)
    for ours, whole in zip(gradients_in_parts, gradients, strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-12)
    assert largest.numbers < ids.numel() * V
    with torch.no_grad():
        torch.testing.assert_close(loss(z, ids, mask), value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_large_batch_is_written_part_by_part_with_the_same_tokens(
    temperature: float, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    readout = randomised(lambda: TransformerReadout(V, D, stride=2, width=8, depth=1, num_heads=2))
    z, mask = normal((5, 4, D), generator), first([4, 4, 2, 1, 4], 4)
    seeded = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    whole = readout.generate(z, mask, temperature=temperature, generator=seeded())
    token_mask = mask.repeat_interleave(readout.stride, dim=1)
    accuracy = token_accuracy(readout, z, whole.ids.roll(1, 0), token_mask)
    few_logits(monkeypatch, 2 * 8 * V)
    with LargestTensor() as largest:
        parts = readout.generate(z, mask, temperature=temperature, generator=seeded())
        assert token_accuracy(readout, z, whole.ids.roll(1, 0), token_mask) == accuracy
    assert torch.equal(parts.ids, whole.ids)
    torch.testing.assert_close(parts.log_probs, whole.log_probs, rtol=0, atol=1e-6)
    assert largest.numbers <= 2 * 8 * V
