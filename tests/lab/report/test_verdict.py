"""The verdict: every rule turns at its thresholds, says its figures, and tells what would measure what is missing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.evaluation.measurement import Threshold
from fewstep.lab.report import thresholds
from fewstep.lab.report.evidence import Evidence
from fewstep.lab.report.rules_readout import last_tube_mass
from fewstep.lab.report.run_folder import RunReport, read_run
from fewstep.lab.report.thresholds import threshold_value
from fewstep.lab.report.verdict import RULES, Verdict, judge, verdict_text
from tests.lab.report.runs_on_disk import MadeDiagnosis, quickstart_table, sweep_row, sweep_rows, write_run

Made = Callable[[Path, float], RunReport]
EPSILON = 1e-6


def with_figure(name: str, scale: float = 1.0) -> Made:
    def make(folder: Path, value: float) -> RunReport:
        diagnosis = MadeDiagnosis()
        diagnosis.table[name] = value * scale
        return read_run(write_run(folder, diagnosis=diagnosis))

    return make


def with_commitment(folder: Path, value: float) -> RunReport:
    return read_run(write_run(folder, diagnosis=MadeDiagnosis(decidedness=[0.0, value, 1.0])))


def with_tube_mass(folder: Path, value: float) -> RunReport:
    return read_run(write_run(folder, diagnosis=MadeDiagnosis(masses=[1.0, 1.0, value])))


def with_stiffness(folder: Path, value: float) -> RunReport:
    return read_run(write_run(folder, diagnosis=MadeDiagnosis(stiffness=[0.0, 4 * value, 0.0])))


def with_rows(change: Callable[[float], dict[str, object]]) -> Made:
    def make(folder: Path, value: float) -> RunReport:
        return read_run(write_run(folder, rows=sweep_rows(**change(value))))

    return make


CASES: dict[str, tuple[Threshold, Made]] = {
    "clean": (thresholds.TOKEN_ACCURACY, with_figure("noise_accuracy_at_0")),
    "noise": (thresholds.NOISE_ACCURACY, with_figure("noise_accuracy_at_0.4")),
    "sharp": (thresholds.SHARPNESS_RATIO, with_figure("dabi")),
    "generated": (thresholds.GENERATED_DISTANCE, with_figure("boundary_distance_generated_p50")),
    "open": (thresholds.DECIDED_HALF_WAY, with_commitment),
    "tube": (thresholds.TUBE_MASS, with_tube_mass),
    "late": (thresholds.LATE_FLIPS, with_figure("late_flip_rate")),
    "steep": (thresholds.STEPPED_STIFFNESS, with_stiffness),
    "listening": (thresholds.LISTENING_NATS, with_figure("listening_gain_nats")),
    "cci": (thresholds.COMMITMENT_INDEX, with_figure("cci")),
    "saturates": (
        thresholds.SATURATION,
        with_rows(
            lambda value: {
                "few": sweep_row("parallel", 4, "0", 50.0 * value),
                "many": sweep_row("parallel", 16, "0", 50.0 * value),
            }
        ),
    ),
    "reinjection": (
        thresholds.GAIN,
        with_rows(
            lambda value: {
                "few_noise": sweep_row("parallel", 4, "1", 200.0 * (1 - value)),
                "many_noise": sweep_row("parallel", 16, "1", 900.0),
            }
        ),
    ),
    "head": (
        thresholds.GAIN,
        with_rows(
            lambda value: {
                "few_head": sweep_row("head", 4, "0", 200.0 * (1 - value)),
                "many_head": sweep_row("head", 16, "0", 900.0),
            }
        ),
    ),
    "entropy": (
        thresholds.ENTROPY_GAP,
        with_rows(lambda value: {"many_head": sweep_row("head", 16, "0", 70.0, entropy=3.0 - value)}),
    ),
    "copies": (
        thresholds.COPIES,
        with_rows(lambda value: {"few_noise": sweep_row("parallel", 4, "1", 100.0, memorised=0.06 * value)}),
    ),
}


def state_of(verdict: Verdict, key: str) -> str:
    finding = verdict.of(key)
    assert finding is not None
    return finding.outcome.state


def test_every_rule_is_among_the_cases_below() -> None:
    assert [rule.key for rule in RULES] and {rule.key for rule in RULES} == set(CASES)


@pytest.mark.parametrize("key", CASES)
def test_a_rule_turns_at_its_thresholds(key: str, tmp_path: Path) -> None:
    threshold, make = CASES[key]
    rule = next(rule for rule in RULES if rule.key == key)
    assert rule.threshold is threshold
    better = EPSILON if threshold.higher else -EPSILON
    expected = {
        threshold.good + better: "good",
        threshold.good - better: "look",
        threshold.bad + better: "look",
        threshold.bad - better: "bad",
    }
    for number, (value, state) in enumerate(expected.items()):
        verdict = judge(make(tmp_path / str(number), value))
        assert state_of(verdict, key) == state, f"{key} at {value}"
        outcome = verdict.of(key).outcome  # type: ignore[union-attr]
        assert outcome.finding
        assert outcome.advice or state == "good"


def test_thresholds_are_said_with_their_numbers_and_with_why() -> None:
    for rule in RULES:
        assert threshold_value(rule.threshold, rule.threshold.good) in rule.threshold_text
        assert threshold_value(rule.threshold, rule.threshold.bad) in rule.threshold_text
        assert len(rule.threshold.why) > 60
        assert rule.threshold.state(rule.threshold.good) == "good"
        assert rule.threshold.state(rule.threshold.bad) == "look"


def test_a_healthy_run_is_good_throughout(tmp_path: Path) -> None:
    verdict = judge(read_run(write_run(tmp_path / "run", diagnosis=MadeDiagnosis(), rows=sweep_rows())))
    assert {finding.rule.key: finding.outcome.state for finding in verdict.findings} == {
        rule.key: "good" for rule in RULES
    }
    assert verdict.begin_with() is None
    assert verdict.summary() == f"0 bad, 0 to look at, {len(RULES)} good, 0 not measured"


def test_what_is_not_measured_says_how_to_measure_it_or_why_it_cannot_be(tmp_path: Path) -> None:
    verdict = judge(read_run(write_run(tmp_path / "a", rows=[sweep_rows()[0]])))
    for finding in verdict.findings:
        assert finding.outcome.state == "not measured"
        assert finding.rule.command in finding.outcome.advice
    diagnosis = MadeDiagnosis(left_out={"cci": "head"})
    del diagnosis.table["cci"]
    outcome = judge(read_run(write_run(tmp_path / "b", diagnosis=diagnosis))).of("cci").outcome  # type: ignore[union-attr]
    assert outcome.finding == "Cannot be measured: the model has no head."
    assert not outcome.advice


def test_a_decoder_alone_is_asked_for_no_samples(tmp_path: Path) -> None:
    diagnosis = MadeDiagnosis(table={"token_accuracy": 0.5, "cci_noise_0.4": 0.01})
    whole = write_run(tmp_path / "run", diagnosis=diagnosis, rows=sweep_rows())
    verdict = judge(read_run(whole / "diagnosis"))
    assert (state_of(verdict, "clean"), state_of(verdict, "cci")) == ("bad", "bad")
    advice = {one.rule.key: one.outcome.advice for one in verdict.findings if one.outcome.state == "not measured"}
    assert advice["sharp"] == "To measure it: the same diagnosis with dabi among --only, or without --only."
    assert advice["reinjection"] == advice["late"] == "Where it belongs to a run, give the run's folder."
    assert state_of(judge(read_run(whole)), "reinjection") == "good"


def test_undetermined_figures_are_not_measured(tmp_path: Path) -> None:
    diagnosis = MadeDiagnosis()
    diagnosis.table |= {"cci": None, "boundary_distance_generated_p50": None}
    verdict = judge(read_run(write_run(tmp_path / "run", diagnosis=diagnosis)))
    assert state_of(verdict, "cci") == state_of(verdict, "generated") == "not measured"


def test_a_gain_that_is_colder_or_within_the_intervals_is_no_clean_gain(tmp_path: Path) -> None:
    cold = {
        "few_noise": sweep_row("parallel", 4, "1", 100.0, entropy=2.6),
        "many_noise": sweep_row("parallel", 16, "1", 60.0, entropy=2.6),
    }
    outcome = judge(read_run(write_run(tmp_path / "cold", rows=sweep_rows(**cold)))).of("reinjection").outcome  # type: ignore[union-attr]
    assert outcome.state == "look"
    assert "colder: entropy 2.60 against 3.00 nats" in outcome.finding
    assert "being colder" in outcome.advice
    wide = {
        "few_noise": sweep_row("parallel", 4, "1", 100.0, spread=0.99),
        "many_noise": sweep_row("parallel", 16, "1", 60.0, spread=0.99),
    }
    outcome = judge(read_run(write_run(tmp_path / "wide", rows=sweep_rows(**wide)))).of("reinjection").outcome  # type: ignore[union-attr]
    assert outcome.state == "look"
    assert "within the intervals" in outcome.finding


@pytest.mark.parametrize(
    ("repeated", "reason"), [(0.3, "because they repeat themselves"), (0.0, "because they use fewer different tokens")]
)
def test_low_entropy_is_put_down_to_repetition_only_where_something_repeats(
    repeated: float, reason: str, tmp_path: Path
) -> None:
    poor = replace(sweep_row("head", 16, "0", 70.0, entropy=2.0), repeated_4grams=repeated)
    real = replace(sweep_row(None, None, None, 50.0, name="held-out text", memorised=0.06), repeated_4grams=0.01)
    outcome = judge(read_run(write_run(tmp_path, rows=sweep_rows(many_head=poor, real=real)))).of("entropy").outcome
    assert outcome is not None and outcome.state == "bad"
    assert reason in outcome.advice


def test_advice_has_the_measured_gain_of_this_run(tmp_path: Path) -> None:
    diagnosis = MadeDiagnosis(masses=[1.0, 1.0, 0.28])
    diagnosis.table |= {"late_flip_rate": 0.31, "boundary_distance_p01": 0.9}
    measured = judge(read_run(write_run(tmp_path / "a", diagnosis=diagnosis, rows=sweep_rows()))).of("late")
    assert measured is not None
    assert "31 % of the tokens change in the last step of 3" in measured.outcome.finding
    assert "0.9 rms" in measured.outcome.finding
    assert "28 % within reach of the last step (s = 0.333)" in measured.outcome.finding
    assert "sharper than the map can follow" in measured.outcome.finding
    assert "re-injection 1 (here −50 % perplexity at K = 4; −33 % perplexity at K = 16)" in measured.outcome.advice
    assert "the commitment head (here −60 % perplexity at K = 4; −22 % perplexity at K = 16)" in measured.outcome.advice
    assert measured.source == "fewstep diagnose, 16 examples"
    alone = judge(read_run(write_run(tmp_path / "b", diagnosis=diagnosis))).of("late")
    assert alone is not None and "fewstep evaluate RUN/model" in alone.outcome.advice


def test_a_still_falling_perplexity_is_worth_a_look_and_a_flat_one_is_bad(tmp_path: Path) -> None:
    falling = {"few": sweep_row("parallel", 4, "0", 900.0), "many": sweep_row("parallel", 16, "0", 500.0)}
    outcome = judge(read_run(write_run(tmp_path / "a", rows=sweep_rows(**falling)))).of("saturates").outcome  # type: ignore[union-attr]
    assert (outcome.state, outcome.figure, outcome.advice) == ("look", "10", "Take more steps.")
    flat = falling | {"few": sweep_row("parallel", 4, "0", 520.0)}
    assert state_of(judge(read_run(write_run(tmp_path / "b", rows=sweep_rows(**flat)))), "saturates") == "bad"


def test_settings_with_anything_unusual_are_not_judged(tmp_path: Path) -> None:
    plain = sweep_row("parallel", 4, "1", 1.0)
    odd = [
        replace(plain, setting=replace(plain.setting, **change))
        for change in (
            {"noise": "reused"},
            {"snap": "every"},
            {"noise_temperature": 0.9},
            {"reinjection": "cosine:1,0"},
        )
    ]
    run = read_run(write_run(tmp_path / "run", rows=[*sweep_rows(), *odd]))
    gains = Evidence(run).reinjection_gains()
    assert [gain.after.perplexity for gain in gains] == [100.0, 60.0]


def test_the_quickstart_table_is_judged_where_there_is_no_sweep(tmp_path: Path) -> None:
    verdict = judge(read_run(write_run(tmp_path / "run", table=quickstart_table())))
    finding = verdict.of("head")
    assert finding is not None
    assert finding.outcome.figure == "−78 % at K = 4"
    assert "flattered" in finding.outcome.finding  # the scorer is the run's own
    assert finding.source == "table.json, scorer the run's language model"


def test_tube_mass_is_read_at_the_start_of_the_last_step_and_only_where_that_was_a_state(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", diagnosis=MadeDiagnosis(masses=[0.9, 0.5, 0.125])))
    assert last_tube_mass(Evidence(run)) == pytest.approx((0.125, 1 / 3))
    (whole,) = run.diagnoses
    late = replace(whole.results["late_flip_rate"], facts={"num_predictions": 8})
    thinned = replace(whole, results={**whole.results, "late_flip_rate": late})
    assert last_tube_mass(Evidence(replace(run, diagnoses=(thinned,)))) is None


def test_images_are_asked_only_what_makes_sense_for_them(tmp_path: Path) -> None:
    diagnosis = MadeDiagnosis(table={"dabi_segment": 20.0, "dabi_segment_fraction": 0.1, "dabi_data_segment": 5.0})
    run = read_run(write_run(tmp_path / "run", diagnosis=diagnosis))
    run = replace(run, diagnoses=tuple(replace(one, kind="images") for one in run.diagnoses))
    verdict = judge(run)
    assert [(one.rule.key, one.outcome.state, one.outcome.figure) for one in verdict.findings] == [
        ("sharp", "look", "4")
    ]


def test_the_text_form_has_every_question_and_the_findings_that_need_something(tmp_path: Path) -> None:
    diagnosis = MadeDiagnosis()
    diagnosis.table["cci"] = 0.0
    verdict = judge(read_run(write_run(tmp_path / "run", diagnosis=diagnosis)))
    text = verdict_text(verdict)
    assert all(rule.question in text for rule in RULES)
    assert text.splitlines()[0].startswith("run: 1 bad")
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- Earlier tokens take away 0 % of the uncertainty about a token. The head reads position by position: see "
        "whether it sees its earlier tokens, or whether nothing is open."
    ]
