"""The verdict: every rule turns at its thresholds, gives its figures, and says what would measure what is missing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.evaluation.charts import ENTROPY_BAND_NATS
from fewstep.evaluation.measurements import FEW_STEPS, NOISE_LEVEL_RMS
from fewstep.evaluation.rows import Row
from fewstep.lab.report.figures import figures_of, percent, rounded
from fewstep.lab.report.rules import RULES, Finding, judge, threshold_text
from fewstep.lab.report.run import Run, read_run
from tests.lab.report.runs_on_disk import MadeDiagnosis, sweep_row, sweep_rows, write_run

Case = Callable[[Path, float], Run]
EPSILON = 1e-6


def with_figure(name: str) -> Case:
    def write(folder: Path, value: float) -> Run:
        diagnosis = MadeDiagnosis()
        diagnosis.table[name] = value
        return read_run(write_run(folder, diagnosis=diagnosis))

    return write


def with_curve(name: str, values: Callable[[float], list[float]]) -> Case:
    def write(folder: Path, value: float) -> Run:
        return read_run(write_run(folder, diagnosis=replace(MadeDiagnosis(), **{name: values(value)})))

    return write


def with_rows(change: Callable[[float], dict[str, Row]]) -> Case:
    def write(folder: Path, value: float) -> Run:
        return read_run(write_run(folder, rows=sweep_rows(**change(value))))

    return write


def gain(name: str, readout: str, gamma: str) -> Case:
    return with_rows(
        lambda value: {
            f"few_{name}": sweep_row(readout, 4, gamma, 200.0 * (1 - value)),
            f"many_{name}": sweep_row(readout, 16, gamma, 900.0),
        }
    )


CASES: dict[str, Case] = {
    "clean": with_figure("noise_accuracy_at_0"),
    "noise": with_figure("noise_accuracy_at_0.4"),
    "sharp": with_figure("dabi"),
    "generated": with_figure("boundary_distance_generated_p50"),
    "open": with_curve("decidedness", lambda value: [0.0, value, 1.0]),
    "tube": with_curve("masses", lambda value: [1.0, 1.0, value]),
    "late": with_figure("late_flip_rate"),
    "steep": with_curve("stiffness", lambda value: [0.0, 4 * value, 0.0]),
    "listening": with_figure("listening_gain_nats"),
    "cci": with_figure("cci"),
    "saturates": with_rows(
        lambda value: {
            "few": sweep_row("parallel", 4, "0", 50.0 * value),
            "many": sweep_row("parallel", 16, "0", 50.0 * value),
        }
    ),
    "reinjection": gain("noise", "parallel", "1"),
    "head": gain("head", "head", "0"),
    "entropy": with_rows(lambda value: {"many_head": sweep_row("head", 16, "0", 70.0, entropy_nats=3.0 - value)}),
    "copies": with_rows(lambda value: {"few": sweep_row("parallel", 4, "0", 200.0, memorised_8grams=0.06 * value)}),
}


def finding(run: Run, key: str) -> Finding:
    result = judge(run).of(key)
    assert result is not None
    return result


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.key)
def test_a_rule_turns_at_its_thresholds(rule, tmp_path: Path) -> None:
    threshold = rule.threshold
    better = EPSILON if threshold.higher else -EPSILON
    expected = {
        threshold.good + better: "good",
        threshold.good - better: "look",
        threshold.bad + better: "look",
        threshold.bad - better: "bad",
    }
    for number, (value, state) in enumerate(expected.items()):
        result = finding(CASES[rule.key](tmp_path / str(number), value), rule.key)
        assert result.state == state, value
        assert result.text and "{" not in result.text + result.advice + result.figure
        assert bool(result.advice) == (state != "good")


def test_thresholds_are_written_with_their_numbers_and_a_reason() -> None:
    assert {rule.key for rule in RULES} == set(CASES)
    for rule in RULES:
        written = percent if rule.threshold.shares else rounded
        assert written(rule.threshold.good) in threshold_text(rule.threshold)
        assert written(rule.threshold.bad) in threshold_text(rule.threshold)
        assert len(rule.threshold.why) > 60


def test_numbers_in_the_rules_are_those_of_the_measurements() -> None:
    rules = {rule.key: rule for rule in RULES}
    assert f"noise_accuracy_at_{NOISE_LEVEL_RMS:g}" in rules["noise"].reads
    assert f"one of {FEW_STEPS} equal steps" in rules["steep"].finding[0]
    assert (rules["entropy"].threshold.good, rules["entropy"].threshold.bad) == (
        ENTROPY_BAND_NATS,
        2 * ENTROPY_BAND_NATS,
    )


def test_a_healthy_run_is_good_throughout(tmp_path: Path) -> None:
    verdict = judge(read_run(write_run(tmp_path / "run", diagnosis=MadeDiagnosis(), rows=sweep_rows())))
    assert {one.rule.key: one.state for one in verdict.findings} == {rule.key: "good" for rule in RULES}
    assert verdict.urgent == []
    assert verdict.to_text().startswith(f"run: 0 bad, 0 look, {len(RULES)} good, 0 not measured\n")


def test_what_is_not_measured_says_how_to_measure_it_or_why_it_cannot_be(tmp_path: Path) -> None:
    for one in judge(read_run(write_run(tmp_path / "a", rows=[sweep_rows()[0]]))).findings:
        assert one.state == "not measured"
        options = f"--only {one.rule.measurement}" if one.rule.measurement else one.rule.evaluation
        assert one.advice.startswith("To measure it: fewstep") and one.advice.endswith(options)
    diagnosis = MadeDiagnosis(left_out={"cci": "head"})
    del diagnosis.table["cci"]
    one = finding(read_run(write_run(tmp_path / "b", diagnosis=diagnosis)), "cci")
    assert (one.text, one.advice) == ("This cannot be measured: the model has no head.", "")


def test_a_reservation_makes_a_state_worth_a_look(tmp_path: Path) -> None:
    def with_noise(**changes: float) -> list[Row]:
        few, many = (sweep_row("parallel", steps, "1", value, **changes) for steps, value in ((4, 100.0), (16, 60.0)))
        return sweep_rows(few_noise=few, many_noise=many)

    colder = finding(read_run(write_run(tmp_path / "a", rows=with_noise(entropy_nats=2.6))), "reinjection")
    assert colder.state == "look" and "entropy of 2.6 nats against 3" in colder.text
    uncertain = finding(read_run(write_run(tmp_path / "b", rows=with_noise(spread=0.99))), "reinjection")
    assert uncertain.state == "look" and "intervals overlap" in uncertain.text
    for few, state in ((900.0, "look"), (520.0, "bad")):  # a perplexity that still falls is no bad end
        rows = sweep_rows(few=sweep_row("parallel", 4, "0", few), many=sweep_row("parallel", 16, "0", 500.0))
        assert finding(read_run(write_run(tmp_path / str(few), rows=rows)), "saturates").state == state


@pytest.mark.parametrize(("perplexity", "state"), [(None, "bad"), (74.0, "look"), (76.0, "bad")])
def test_a_readout_that_copies_badly_and_writes_text_is_not_bad(
    tmp_path: Path, perplexity: float | None, state: str
) -> None:
    diagnosis, rows = MadeDiagnosis(), sweep_rows()
    diagnosis.table["noise_accuracy_at_0"] = 0.67
    if perplexity is not None:
        rows.append(sweep_row(None, None, None, perplexity, name="held-out text read back"))
    one = finding(read_run(write_run(tmp_path / "run", diagnosis=diagnosis, rows=rows)), "clean")
    assert one.state == state
    assert ("few-step text is better without" in one.advice) == ("1.48 times" in one.text) == (state == "look")


def test_settings_with_anything_unusual_are_not_judged(tmp_path: Path) -> None:
    plain = sweep_row("parallel", 4, "1", 1.0)
    changes = ({"noise": "reused"}, {"snap": "every"}, {"noise_temperature": 0.9}, {"reinjection": "cosine:1,0"})
    odd = [replace(plain, setting={**plain.setting, **change}) for change in changes]
    figures = figures_of(read_run(write_run(tmp_path / "run", rows=[*sweep_rows(), *odd])))
    assert figures["reinjection_gain"] == pytest.approx(0.5)


def test_tube_mass_is_read_at_the_start_of_the_last_step(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", diagnosis=MadeDiagnosis(masses=[0.9, 0.5, 0.125])))
    values = figures_of(run)
    assert (values["last_step_mass"], values["last_step_scale"]) == pytest.approx((0.125, 1 / 3))


def test_images_are_asked_only_what_makes_sense_for_them(tmp_path: Path) -> None:
    table = {"dabi_segment": 20.0, "dabi_segment_fraction": 0.1, "dabi_data_segment": 5.0}
    run = read_run(write_run(tmp_path / "run", diagnosis=MadeDiagnosis(table=table, kind="images")))
    assert [(one.rule.key, one.state, one.figure) for one in judge(run).findings] == [("sharp", "look", "4")]


def test_the_text_form_has_the_findings_that_need_something(tmp_path: Path) -> None:
    diagnosis = MadeDiagnosis()
    diagnosis.table["cci"] = 0.0
    text = judge(read_run(write_run(tmp_path / "run", diagnosis=diagnosis))).to_text()
    (note,) = [line for line in text.splitlines() if line.startswith("- ")]
    assert note.startswith("- Earlier tokens resolve 0 % of the uncertainty about a token. The head reads")
