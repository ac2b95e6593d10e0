"""Listening: a head that copies its latents is lost without them, a deaf one does not notice."""

import json
from math import exp, log

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.result import Result
from fewstep.evaluation.adapters import HeadConditionals
from fewstep.evaluation.listening import listening, listening_curve
from fewstep.evaluation.measurements import measure_listening
from fewstep.readouts import CommitmentHead
from tests.bundles import tiny_bundle
from tests.evaluation.subjects import tiny_subject

V, B, L = 4, 40, 5
RIGHT = 0.97


class Copying(CommitmentHead):
    """Latents are one-hot tokens: the head gives the largest entry of a latent probability 0.97, whatever the level.

    A ``deaf`` one gives all tokens the same.
    """

    def __init__(self, deaf: bool) -> None:
        super().__init__(tiny_bundle().head)
        self.deaf = deaf
        self.told: list[Tensor] = []

    def token_nats(
        self, z: Tensor, ids: Tensor, mask: Tensor, noise_level: Tensor, sees_tokens: Tensor | None = None
    ) -> Tensor:
        self.told.append(noise_level)
        if self.deaf:
            return torch.full(ids.shape, log(V))
        return torch.where(z.argmax(-1) == ids, -log(RIGHT), -log((1 - RIGHT) / (V - 1)))


def texts(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(V, (B, L), generator=generator)
    mask = torch.arange(L) < torch.randint(1, L + 1, (B, 1), generator=generator)
    return torch.nn.functional.one_hot(ids, V).float(), ids, mask


def perplexities(found: Result) -> tuple[float, float, float]:
    """With the right latent, another's and none."""
    return tuple(found[f"listening_perplexity_{which}"].value for which in ("right", "other", "none"))


def test_a_head_that_copies_has_the_perplexity_of_its_hits(generator: torch.Generator) -> None:
    z, ids, mask = texts(generator)
    head = Copying(deaf=False)
    found = listening(head, z, ids, mask, 0.0, generator)
    right, other, none = perplexities(found)
    wrong = -log((1 - RIGHT) / (V - 1))
    hits = (z.roll(1, 0).argmax(-1) == ids)[mask].double().mean()
    assert right == pytest.approx(1 / RIGHT)
    assert other == pytest.approx(exp(hits * -log(RIGHT) + (1 - hits) * wrong))
    # Noise hits one time in V: the mean of about 120 such draws.
    by_chance = -log(RIGHT) / V + wrong * (V - 1) / V
    assert log(none) == pytest.approx(by_chance, abs=5 * wrong * (0.25 * 0.75 / int(mask.sum())) ** 0.5)
    assert found["listening_gain_nats"].value == pytest.approx(log(none) - log(right))
    assert found["listening_misled_nats"].value == pytest.approx(log(other) - log(none))
    interval = found["listening_perplexity_none"].interval
    assert found["listening_gain_nats"].interval.low > 1 and interval.low < none < interval.high
    assert [float(level.unique()) for level in head.told] == [0.0, 0.0, 2.0]


def test_a_deaf_head_has_one_perplexity_and_gains_nothing(generator: torch.Generator) -> None:
    found = listening(Copying(deaf=True), *texts(generator), 0.3, generator)
    assert perplexities(found) == pytest.approx((V, V, V))
    assert found["listening_gain_nats"].value == found["listening_misled_nats"].value == 0


def test_the_right_and_the_other_latent_hold_the_same_noise_and_none_has_the_rms_of_a_noised_one(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, ids = torch.randn(200, 30, 4, generator=generator), torch.zeros(200, 30).long()
    seen: list[Tensor] = []
    head = Copying(deaf=True)
    monkeypatch.setattr(head, "token_nats", lambda latent, ids, *_: (seen.append(latent), torch.zeros(ids.shape))[1])
    listening(head, z, ids, torch.ones_like(ids).bool(), 0.8, generator, blank_level=1.5)
    right, other, blank = seen
    torch.testing.assert_close(right - z, other - z.roll(1, 0), rtol=0, atol=1e-6)
    assert (right - z).square().mean().sqrt() == pytest.approx(0.8, rel=0.03)
    assert blank.square().mean().sqrt() == pytest.approx((1 + 1.5**2) ** 0.5, rel=0.03)
    assert abs(float((blank * z).mean())) < 5 * (1 + 1.5**2) ** 0.5 / z.numel() ** 0.5


def test_padding_does_not_count(generator: torch.Generator) -> None:
    z, ids, mask = texts(generator)
    plain, changed = (
        listening(Copying(deaf=False), z, tokens, mask, 0.5, torch.Generator().manual_seed(1))
        for tokens in (ids, torch.where(mask, ids, (ids + 1) % V))
    )
    assert plain == changed


def test_a_real_head_is_measured_by_its_own_loss(generator: torch.Generator) -> None:
    subject = tiny_subject()
    head, mask = subject.generator.model.commitment_head(), torch.ones_like(subject.ids).bool()
    found = listening(head, subject.z, subject.ids, mask, 0.0, generator)
    with torch.no_grad():
        log_probs = HeadConditionals(head, 0.0).logits(subject.z, subject.ids).double().log_softmax(-1)
    nats = -log_probs.gather(-1, subject.ids[..., None]).mean()
    assert found["listening_perplexity_right"].value == pytest.approx(float(nats.exp()), rel=1e-4)


def test_the_measurement_reads_at_the_heads_own_level_and_draws_a_curve() -> None:
    own, curve = measure_listening(tiny_subject(), levels=(0.0, 1.0))
    assert (own.name, curve.name) == ("listening", "listening_noise")
    assert own.facts["level"] == tiny_bundle().identity.trust_level
    assert [row.name for row in own.rows][:2] == ["listening_perplexity_right", "listening_perplexity_other"]
    assert [row.name for row in curve.rows] == ["listening_noise_0_gain_nats", "listening_noise_1_gain_nats"]
    assert [series.label for series in curve.picture().series] == ["right latent", "another text's", "no latent"]
    json.dumps([own.to_dict(), curve.to_dict()], allow_nan=False)
    assert own.picture() is None
    assert measure_listening(tiny_subject(num_examples=1)) == ()


def test_input_that_does_not_fit_is_refused(generator: torch.Generator) -> None:
    z, ids, mask = texts(generator)
    head = Copying(deaf=True)
    for make, message in (
        (lambda: listening(head, z[:1], ids[:1], mask[:1], 0.0, generator), "at least two examples"),
        (lambda: listening(head, z, ids[:-1], mask[:-1], 0.0, generator), "one latent a text"),
        (lambda: listening(head, z, ids, mask, -1.0, generator), "level is -1.0"),
        (lambda: listening(head, z, ids, mask, 0.0, generator, blank_level=float("nan")), "blank_level is nan"),
        (lambda: listening_curve(head, z, ids, mask, (), generator), "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
