"""What steps and re-injected noise buy: every figure of a setting is that of a plain calculation."""

import json
import math
from collections import Counter

import pytest
import torch

from fewstep.diagnostics import cci
from fewstep.evaluation import Subject
from fewstep.evaluation.adapters import HeadConditionals, sampled
from fewstep.evaluation.trade_off import TradeOff, TradeOffRow, trade_off
from fewstep.shapes import randn
from tests.bundles import BLOCK_SIZE, only, with_identity
from tests.evaluation.subjects import mild_bundle, tiny_subject

STEPS, GAMMAS = (1, 3), (0.0, 0.5)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_subject(mild_bundle(self_conditioning=True))


@pytest.fixture(scope="module")
def table(subject: Subject) -> TradeOff:
    with pytest.MonkeyPatch.context() as patch:  # enough for the singular values to be exact
        patch.setattr("fewstep.evaluation.trade_off.NUM_ITERATIONS", 15)
        return trade_off(subject, steps=STEPS, reinjections=GAMMAS)


def row(table: TradeOff, num_steps: int, gamma: float) -> TradeOffRow:
    (found,) = [one for one in table.settings if (one.num_steps, one.reinjection) == (num_steps, gamma)]
    return found


@torch.no_grad()
def test_perplexity_and_entropy_are_those_of_the_parallel_tokens(subject: Subject, table: TradeOff) -> None:
    ids = subject.generator.bundle.readout(
        sampled(subject, 3, 0.5).x_1, torch.ones(4, BLOCK_SIZE // 2, dtype=torch.bool)
    ).argmax(-1)
    network = subject.generator.bundle.language_model
    nats = -network(network.shifted(ids)).double().log_softmax(-1).gather(-1, ids[..., None])
    found = row(table, 3, 0.5)
    assert found.perplexity.value == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    assert found.perplexity.interval.low < found.perplexity.value < found.perplexity.interval.high
    shares = [[count / BLOCK_SIZE for count in Counter(block).values()] for block in ids.tolist()]
    entropy = sum(-p * math.log(p) for block in shares for p in block) / len(ids)
    assert found.entropy_nats == pytest.approx(entropy)


@torch.no_grad()
def test_late_flips_are_tokens_that_the_last_evaluation_changed(subject: Subject, table: TradeOff) -> None:
    mask = torch.ones(4, BLOCK_SIZE // 2, dtype=torch.bool)
    readout = subject.generator.bundle.readout
    before, last = (readout(x1_hat, mask).argmax(-1) for x1_hat in sampled(subject, 3, 0.5).predictions[-2:])
    found = row(table, 3, 0.5)
    assert found.late_flip_rate.value == pytest.approx(float((before != last).double().mean()))
    assert 0 < found.late_flip_rate.value < 1
    assert row(table, 1, 0.5).late_flip_rate.value is None


def test_peak_stiffness_is_the_largest_mean_singular_value_over_the_states_that_were_evaluated(
    subject: Subject, table: TradeOff
) -> None:
    path, flow = sampled(subject, 3, 0.5), subject.generator.bundle.flow()
    means = []
    for t, x_t in zip(path.times[:-1], path.states[:-1], strict=True):
        values = []
        for x in x_t:

            def velocity(flat: torch.Tensor, t: torch.Tensor = t, x: torch.Tensor = x) -> torch.Tensor:
                return flow.velocity(flat.reshape(1, *x.shape), t[None]).flatten()

            jacobian = torch.autograd.functional.jacobian(velocity, x.flatten())
            values.append(float(torch.linalg.matrix_norm(jacobian, 2)))
        means.append(sum(values) / len(values))
    assert row(table, 3, 0.5).peak_stiffness.value == pytest.approx(max(means), rel=1e-2)


def test_cci_is_the_heads_at_the_end_of_the_trajectory_blurred_to_its_trust_level(
    subject: Subject, table: TradeOff
) -> None:
    head, noise, z = (
        subject.generator.bundle.commitment_head(),
        subject.noise("trade_off_3_0.5"),
        sampled(subject, 3, 0.5).x_1,
    )
    blurred = z + head.trust_level * randn(tuple(z.shape), z, noise)
    expected = cci(HeadConditionals(head, head.trust_level), blurred, draws_at_once=8, generator=noise)
    assert row(table, 3, 0.5).cci == expected.cci
    assert 0 < expected.cci.value < 1


def test_settings_begin_at_the_same_noise_and_one_step_adds_none(table: TradeOff) -> None:
    assert [(one.reinjection, one.num_steps) for one in table.settings] == [
        (gamma, steps) for gamma in GAMMAS for steps in STEPS
    ]
    assert row(table, 1, 0.0).perplexity == row(table, 1, 0.5).perplexity
    assert row(table, 3, 0.0).perplexity != row(table, 3, 0.5).perplexity


def test_rows_picture_and_json_name_every_setting(table: TradeOff) -> None:
    names = [row.name for row in table.rows()]
    what = ("perplexity", "stiffness_peak", "late_flip_rate", "cci")
    assert names == [f"{name}_K{steps}_gamma{gamma}" for gamma in ("0", "0.5") for steps in STEPS for name in what]
    picture = table.picture()
    assert [series.label for series in picture.series] == ["gamma = 0", "gamma = 0.5"]
    for series, gamma in zip(picture.series, GAMMAS, strict=True):
        assert series.x == STEPS
        assert series.y == tuple(row(table, steps, gamma).perplexity.value for steps in STEPS)
    stored = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert stored["settings"][3]["perplexity"]["value"] == row(table, 3, 0.5).perplexity.value


def test_without_a_head_there_is_no_cci(subject: Subject) -> None:
    parts = only(subject.generator.bundle, "autoencoder", "readout", "denoiser", "language_model")
    table = trade_off(tiny_subject(parts), steps=(1,), reinjections=(0.0,))
    assert table.settings[0].cci is None
    assert not any(row.name.startswith("cci") for row in table.rows())


@pytest.mark.parametrize(
    ("identity", "settings"),
    [
        ({"estimate": "endpoint"}, [(1, 0.0), (1, 1.0), (2, 1.0)]),
        ({"estimate": "flow_map"}, [(1, 0.0), (2, 0.0), (1, 1.0), (2, 1.0)]),
    ],
)
def test_strengths_that_the_model_was_not_trained_for_are_left_out(identity: dict, settings: list) -> None:
    bundle = with_identity(only(mild_bundle(), "autoencoder", "readout", "denoiser", "language_model"), **identity)
    table = trade_off(tiny_subject(bundle), steps=(1, 2), reinjections=(0.0, 1.0))
    assert [(one.num_steps, one.reinjection) for one in table.settings] == settings
