"""Laws of snap: estimates inside the loop replaced by the latents of their likeliest tokens."""

import pytest
import torch
from torch import Tensor

from fewstep.paths import linear_path
from fewstep.samplers import FlowSampler, Snap, SnapRule, Solver, parse_snap
from tests.samplers.bases import each_solver, noise
from tests.toys import MixingModel

V, B, K, D, SHARPNESS = 6, 4, 3, 5, 4.0
CODES = torch.randn(V, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CODES = CODES / CODES.norm(dim=-1, keepdim=True)


def decode(z: Tensor, mask: Tensor) -> Tensor:
    """Exact on the unit codes: the nearest one has the largest logit."""
    return SHARPNESS * z @ CODES.T


def encode(ids: Tensor, mask: Tensor) -> Tensor:
    """The codes of tokens, zero at padding."""
    return CODES[ids] * mask[..., None]


def exact_snap(rule: str | SnapRule = "every") -> Snap:
    return Snap(decode, encode, rule)


def snapped_at(snap: Snap, z: Tensor) -> Tensor:
    """One call in the first step, every position real."""
    return snap(z, 0, 4, torch.ones(z.shape[:2], dtype=torch.bool))[0]


def run(correct: object, **settings: object) -> list:
    path = linear_path()
    sampler = FlowSampler(path, correct=correct, **settings)
    generator = torch.Generator().manual_seed(3)
    return list(sampler.iterate(MixingModel(path), noise(B, K, D, seed=1), num_steps=4, generator=generator))


@pytest.mark.parametrize("rule", ["every", "confidence:0.2"])
def test_latents_that_are_encodings_of_their_tokens_stay_as_they_are(rule: str) -> None:
    z = CODES[torch.randint(V, (B, K), generator=torch.Generator().manual_seed(1))]
    assert torch.equal(snapped_at(exact_snap(rule), z), z)
    moved = z + 0.1 * noise(B, K, D, seed=1)
    assert torch.equal(snapped_at(exact_snap(), moved), z), "and what is near them goes there"


@each_solver
@pytest.mark.parametrize("rule", ["confidence:1.0", "confidence:1.5"])
def test_a_threshold_that_nothing_exceeds_is_the_plain_sampler_bit_for_bit(solver: Solver, rule: str) -> None:
    plain, snapped = (run(one, solver=solver, reinjection=0.5) for one in (None, exact_snap(rule)))
    for one, other in zip(plain, snapped, strict=True):
        assert torch.equal(one.x_t, other.x_t)
    assert not torch.equal(plain[-1].x_t, run(exact_snap(), solver=solver, reinjection=0.5)[-1].x_t)


def test_estimates_and_the_end_are_encodings_where_all_snaps() -> None:
    states = run(exact_snap())
    for state in states[1:]:
        assert torch.cdist(state.x1_hat, CODES).amin(-1).max() < 1e-6
    assert torch.equal(states[-1].x_t, states[-1].x1_hat)
    # The state itself is made with the corrected estimate: the Euler formula, written out.
    t, s = states[1].time, states[2].time
    eps = (states[1].x_t - t * states[2].x1_hat) / (1 - t)
    torch.testing.assert_close(states[2].x_t, s * states[2].x1_hat + (1 - s) * eps, rtol=0, atol=1e-9)


def test_with_a_stride_a_position_snaps_only_when_all_its_tokens_are_decided() -> None:
    probabilities = torch.tensor([[0.9, 0.8, 0.9, 0.6, 0.5, 0.5]], dtype=torch.float64)  # two tokens a position
    logits = torch.stack([probabilities, 1 - probabilities], -1).log()
    snap = Snap(lambda z, mask: logits, lambda ids, mask: torch.ones(1, 3, 2).double(), rule="confidence:0.7")
    assert snapped_at(snap, torch.zeros(1, 3, 2).double())[0, :, 0].tolist() == [1, 0, 0]


def test_a_rule_of_the_last_steps_acts_there_only() -> None:
    plain, late = run(None), run(exact_snap("last:1"))
    for one, other in zip(plain[:-1], late[:-1], strict=True):
        assert torch.equal(one.x_t, other.x_t)
    assert not torch.equal(plain[-1].x_t, late[-1].x_t)
    assert [torch.equal(a.x1_hat, b.x1_hat) for a, b in zip(plain[1:], late[1:], strict=True)] == [True] * 3 + [False]
    assert [b.nfe - a.nfe for a, b in zip(plain, late, strict=True)] == [0, 0, 0, 0, 2]
    assert run(exact_snap("last:9"))[-1].nfe == run(None)[-1].nfe + 8


@pytest.mark.parametrize("text", ["", "last", "last:0", "last:1.5", "confidence:high", "confidence:nan"])
def test_a_wrong_rule_is_named_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^snap is .*: expected every, last:N with N >= 1, or confidence:P[^\n]*$"):
        parse_snap(text)
