"""Laws of the parallel readouts: their loss, padding, drawing, accuracy."""

from types import SimpleNamespace

import pytest
import torch

from fewstep.readouts import LinearReadout, ParallelReadout, TransformerReadout, token_accuracy
from fewstep.shapes import example_generators
from tests.nn.builders import first, normal, randomised

V, D = 11, 3


def build(kind: str, stride: int) -> ParallelReadout:
    if kind == "linear":
        return LinearReadout(V, D, stride=stride)
    return TransformerReadout(V, D, stride=stride, width=8, depth=2, num_heads=2)


each_readout = pytest.mark.parametrize(
    "readout",
    [
        randomised(lambda kind=kind, stride=stride: build(kind, stride))
        for kind in ("linear", "mix")
        for stride in (1, 2)
    ],
    ids=["linear_1", "linear_2", "transformer_1", "transformer_2"],
)


@each_readout
def test_the_loss_is_the_mean_surprise_of_real_tokens(readout: ParallelReadout, generator: torch.Generator) -> None:
    z, ids = normal((3, 4, D), generator), torch.randint(V, (3, 4 * readout.stride), generator=generator)
    lengths = [4 * readout.stride, 3, 0]
    loss = readout.loss(z, ids, first(lengths, ids.shape[1]))
    for row, length in enumerate(lengths):
        latent_mask = first([-(-length // readout.stride)], 4)
        log_probs = readout(z[row : row + 1], latent_mask).log_softmax(-1)[0]
        nats = -sum(log_probs[i, ids[row, i]] for i in range(length)) / max(length, 1)
        torch.testing.assert_close(loss[row].double(), torch.as_tensor(nats).double(), rtol=0, atol=1e-5)


@each_readout
def test_padding_changes_nothing_at_real_positions(readout: ParallelReadout, generator: torch.Generator) -> None:
    z, mask, stride = normal((2, 4, D), generator), first([4, 2], 4), readout.stride
    more = torch.cat([torch.where(mask[..., None], z, -7.0), 9 * normal((2, 3, D), generator)], 1)
    real = first([4 * stride, 2 * stride], 4 * stride)
    plain, padded = readout(z, mask), readout(more, first([4, 2], 7))
    torch.testing.assert_close(padded[:, : 4 * stride][real], plain[real], rtol=0, atol=1e-10)
    ids = torch.randint(V, (2, 7 * stride), generator=generator)
    loss = readout.loss(z, ids[:, : 4 * stride], real)
    junk = torch.where(first([4 * stride, 2 * stride], 7 * stride), ids, (ids + 1) % V)
    padded_loss = readout.loss(more, junk, first([4 * stride, 2 * stride], 7 * stride))
    torch.testing.assert_close(padded_loss, loss, rtol=0, atol=1e-6)


@each_readout
def test_generation_is_argmax_by_default_and_follows_its_own_generators(
    readout: ParallelReadout, generator: torch.Generator
) -> None:
    z, mask = normal((3, 4, D), generator), first([4, 4, 4], 4)
    assert torch.equal(readout.generate(z, mask, generator=generator).ids, readout(z, mask).argmax(-1))
    hot = [
        readout.generate(z[i:j], mask[i:j], temperature=3.0, generator=example_generators(1, i, j - i)).ids
        for i, j in ((0, 3), (0, 1), (1, 2), (2, 3))
    ]
    assert torch.equal(hot[0], torch.cat(hot[1:]))
    assert not torch.equal(hot[0], readout(z, mask).argmax(-1))


def test_the_accuracy_counts_real_tokens_only() -> None:
    ids = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 0, 3], [0, 2, 1, 0]]), 4).float()
    readout = SimpleNamespace(logits=lambda z, mask: z)
    assert token_accuracy(readout, logits, ids, torch.ones(2, 4).bool()) == 6 / 8
    assert token_accuracy(readout, logits, ids, torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()) == 2 / 4
    assert token_accuracy(readout, logits, ids, torch.zeros(2, 4).bool()) == 0
