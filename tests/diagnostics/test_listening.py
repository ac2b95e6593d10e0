"""Listening: a readout that copies its latents is lost without them, a deaf one does not notice."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.listening import BLANK_LEVEL, listening, listening_curve
from fewstep.diagnostics.result import Result
from tests.diagnostics.decoders import plain

V, B, L = 4, 40, 5
RIGHT = 0.97


class Copying:
    """Latents are one-hot tokens: the largest entry of a latent has probability 0.97. A ``deaf`` one ignores them."""

    def __init__(self, deaf: bool) -> None:
        self.deaf = deaf
        self.levels: list[float] = []
        self.seen: list[Tensor] = []

    def at(self, level: float) -> "Copying":
        self.levels.append(level)
        return self

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        raise AssertionError("nothing is drawn")

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        self.seen.append(z)
        if self.deaf:
            return torch.zeros(*ids.shape, V)
        largest = torch.nn.functional.one_hot(z.argmax(-1), V).bool()
        return torch.where(largest, log(RIGHT), log((1 - RIGHT) / (V - 1)))


def texts(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ids = torch.randint(V, (B, L), generator=generator)
    return torch.nn.functional.one_hot(ids, V).float(), ids


def perplexities(found: Result) -> tuple[float, float, float]:
    """With the right latent, another's and none."""
    return tuple(found[f"listening_perplexity_{which}"].value for which in ("right", "other", "none"))


def test_a_readout_that_copies_has_the_perplexity_of_its_hits(generator: torch.Generator) -> None:
    z, ids = texts(generator)
    head = Copying(deaf=False)
    found = listening(head.at, z, ids, 0.0, generator)
    right, other, none = perplexities(found)
    wrong = -log((1 - RIGHT) / (V - 1))
    hits = (z.roll(1, 0).argmax(-1) == ids).double().mean()
    assert right == pytest.approx(1 / RIGHT)
    assert other == pytest.approx(exp(hits * -log(RIGHT) + (1 - hits) * wrong))
    by_chance = -log(RIGHT) / V + wrong * (V - 1) / V  # noise hits one time in V
    assert log(none) == pytest.approx(by_chance, abs=5 * wrong * (0.25 * 0.75 / ids.numel()) ** 0.5)
    assert found["listening_gain_nats"].value == pytest.approx(log(none) - log(right))
    assert found["listening_misled_nats"].value == pytest.approx(log(other) - log(none))
    interval = found["listening_perplexity_none"].interval
    assert found["listening_gain_nats"].interval.low > 1 and interval.low < none < interval.high
    assert set(head.levels) == {0.0, BLANK_LEVEL}


def test_a_deaf_readout_has_one_perplexity_and_gains_nothing(generator: torch.Generator) -> None:
    found = listening(Copying(deaf=True).at, *texts(generator), 0.3, generator)
    assert perplexities(found) == pytest.approx((V, V, V))
    assert found["listening_gain_nats"].value == found["listening_misled_nats"].value == 0


def test_the_right_and_the_other_latent_hold_the_same_noise_and_none_has_the_rms_of_a_noised_one(
    generator: torch.Generator,
) -> None:
    z, ids, head = torch.randn(200, 30, 4, generator=generator), torch.zeros(200, 30).long(), Copying(deaf=True)
    listening(head.at, z, ids, 0.8, generator)
    right, other, blank = head.seen
    torch.testing.assert_close(right - z, other - z.roll(1, 0), rtol=0, atol=1e-6)
    assert (right - z).square().mean().sqrt() == pytest.approx(0.8, rel=0.03)
    assert blank.square().mean().sqrt() == pytest.approx((1 + BLANK_LEVEL**2) ** 0.5, rel=0.03)
    assert abs(float((blank * z).mean())) < 5 * (1 + BLANK_LEVEL**2) ** 0.5 / z.numel() ** 0.5


def test_a_curve_has_the_gain_at_every_level(generator: torch.Generator) -> None:
    curve = listening_curve(Copying(deaf=False).at, *texts(generator), (0.0, 1.0), generator)
    assert [row.name for row in curve.rows] == ["listening_noise_0_gain_nats", "listening_noise_1_gain_nats"]
    assert [series.label for series in curve.picture().series] == ["right latent", "another text's", "no latent"]
    plain(curve)


def test_input_that_does_not_fit_is_refused(generator: torch.Generator) -> None:
    z, ids = texts(generator)
    read = Copying(deaf=True).at
    for latents, tokens, level, message in (
        (z[:1], ids[:1], 0.0, "at least two"),
        (z, ids[:-1], 0.0, "one latent a text"),
        (z, ids, -1.0, "level is -1.0"),
        (z, ids, float("nan"), "level is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            listening(read, latents, tokens, level, generator)
