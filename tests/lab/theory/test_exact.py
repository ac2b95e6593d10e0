"""The exact denoiser of a model's own latents: the study, its matched controls, and the command."""

import json
from pathlib import Path

import pytest
import torch

from fewstep.cli.main import errors_to_exit_code
from fewstep.errors import UserError
from fewstep.evaluation.rows import Row, Setting, Value
from fewstep.evaluation.sweep import Sweep
from fewstep.lab.theory.command import PICTURE_FILE, ROWS_FILE, TABLE_FILE, main
from fewstep.lab.theory.exact import (
    ExactStudy,
    exact_picture,
    exact_table,
    flow_setting,
    match,
    train_blocks,
    train_latents,
    with_gains,
)
from fewstep.metrics.intervals import Interval
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn
from tests.bundles import BLOCK_SIZE, only, tiny_bundle, with_identity
from tests.cli.shops import rows_in
from tests.runs import write_text

FLOW, RENEWED = flow_setting(0.7, 4, 0.0), flow_setting(0.7, 4, 1.0)
COOLED = {**FLOW, "name": "cooled", "matches": "1"}
SPREAD = {**RENEWED, "name": "spread", "matches": "0"}


@pytest.fixture(scope="module")
def study() -> ExactStudy:
    bundle = tiny_bundle()
    ids = torch.randint(4, 280, (20, BLOCK_SIZE), generator=torch.Generator().manual_seed(0))
    latents = train_latents(bundle, ids)
    return ExactStudy(bundle, latents, 6, 3, 1, steps=(1, 2, 4), matched_steps=(4,), caps=(1.0,), cap_steps=(2,))


def test_many_steps_without_a_width_end_at_train_latents(study: ExactStudy) -> None:
    x_1 = study.sample(flow_setting(0.0, 32, 0.0), 5)
    assert study.distance(x_1) < 1e-3


def test_a_width_blurs_draws_by_h_and_no_width_gives_the_data(study: ExactStudy) -> None:
    none, blurred = (study.make({"name": "draws", "h": h}, 6).tensors["x_1"] for h in (0.0, 0.01))
    nearest = study.flow(0.0).nearest
    assert float(nearest(none)[0].max()) < 1e-5
    spread = nearest(blurred)[0].square().mean() / none[0].numel()
    assert float(spread.sqrt()) == pytest.approx(0.01, rel=0.5)


def test_every_reinjected_setting_gets_its_two_controls_as_far_from_the_data(study: ExactStudy) -> None:
    rows = list(Sweep(study.plan()).rows())
    controls = [row for row in rows if "matches" in row.setting]
    assert [(row.setting["name"], row.setting["reinjection"], row.setting["matches"]) for row in controls] == [
        ("cooled", "0", "0.5"),
        ("spread", "0.5", "0"),
        ("cooled", "0", "1"),
        ("spread", "1", "0"),
    ]
    assert {row.num_samples for row in rows if "cap" in row.setting} == {3}
    distances = {
        (row.setting["num_steps"], row.setting["reinjection"]): row.value("distance")
        for row in rows
        if row.setting["name"] == "flow" and row.setting["h"] == 0.7
    }
    for row in controls:
        if row.value("matched"):
            target = distances[row.setting["num_steps"], row.setting["matches"]]
            assert row.value("distance") == pytest.approx(target, rel=0.01)


def test_the_cooled_control_cools_old_noise_and_1_is_the_plain_flow(study: ExactStudy) -> None:
    assert study.sample(COOLED, 6).equal(study.sample(FLOW, 6))
    flow, generators = study.flow(0.7), example_generators(study.seed, 0, 6)
    x_0 = randn((6, *study.latents.shape[1:]), study.latents, generators)
    sampler = FlowSampler(flow.path, noise_temperature=0.5)
    cold = sampler.sample(flow, x_0, num_steps=4, generator=generators).x_1
    torch.testing.assert_close(study.sample(COOLED, 6, 0.5), cold)


def measured(setting: Setting, wrong: list[float], *, matched: bool = True) -> Row:
    """A row whose interval is from the least to the largest share."""
    value = Value(sum(wrong) / len(wrong), Interval(min(wrong), max(wrong)))
    values = {"wrong": value, "matched": Value(float(matched)), "temperature": Value(0.8)}
    shares = {"wrong": tuple((share,) for share in wrong)}
    return Row(dict(setting), values, len(wrong), (0,), "m", "", {"latents": 8}, 4, "cpu", per_sample=shares)


@pytest.mark.parametrize(
    ("control", "share"),
    [
        (COOLED, 0.25),  # 0.3 - 0.2 is left of 0.6 - 0.2
        (SPREAD, 0.75),  # 0.6 - 0.3 is left of 0.6 - 0.2
    ],
)
def test_what_remains_of_a_gain_is_counted_between_samples_equally_far_from_the_data(
    control: Setting, share: float
) -> None:
    rows = [
        measured(FLOW, [0.5, 0.6, 0.7, 0.6]),
        measured(RENEWED, [0.1, 0.2, 0.3, 0.2]),
        measured(control, [0.2, 0.3, 0.4, 0.3]),
    ]
    *others, row = with_gains(rows)
    assert others == rows[:2]
    assert row.value("remains") == pytest.approx(share)
    # All three differ by constants, and the samples are paired: nothing is left to vary.
    assert (row.interval("remains").low, row.interval("remains").high) == pytest.approx((share, share))
    assert f"| {share:.0%} | {share:.0%} - {share:.0%} |" in exact_table(rows)
    rows[2] = measured(control, [0.2, 0.3, 0.4, 0.3], matched=False)
    assert with_gains(rows) == rows


def test_no_share_is_shown_where_there_may_be_no_gain() -> None:
    rows = [
        measured(FLOW, [0.1, 0.4, 0.0, 0.3]),
        measured(RENEWED, [0.3, 0.1, 0.3, 0.0]),
        measured(COOLED, [0.2, 0.2, 0.1, 0.1]),
    ]
    assert with_gains(rows) == rows


def test_a_match_is_the_first_on_the_way_though_the_distance_is_not_monotone() -> None:
    # 9 at 1, down to 5 at 0.6, up again: 6 is met at 0.7 and at 0.5.
    def distance(temperature: float) -> float:
        return 5 + 10 * abs(temperature - 0.6)

    found, matched = match(distance, 6.0, (1.0, 0.8, 0.6, 0.4))
    assert matched
    assert found == pytest.approx(0.7, abs=0.01)
    assert match(distance, 4.0, (1.0, 0.8, 0.6, 0.4)) == (0.6, False)
    jumping, matched = match(lambda one: 9.0 if one > 0.7 else 5.0, 6.0, (1.0, 0.5))
    assert not matched
    assert jumping == pytest.approx(0.7, abs=1e-3)


def test_more_blocks_than_there_are_without_padding_are_refused() -> None:
    from datasets import Dataset

    train = Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6], [7, 8, 0]], "length": [3, 3, 2]})
    assert train_blocks(train, 2).tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(UserError, match="1 to 2"):
        train_blocks(train, 3)


def test_the_picture_shows_the_shares_of_the_widest_latents_without_a_cap() -> None:
    rows = [
        measured({"name": "draws", "h": 0.7}, [0.02, 0.04]),
        measured(flow_setting(0.0, 4, 0.0), [0.9, 0.9]),
        measured(flow_setting(0.7, 8, 0.0), [0.1, 0.3]),
        measured(FLOW, [0.5, 0.7]),
        measured({**FLOW, "cap": 2.0}, [0.8, 0.8]),
        measured(RENEWED, [0.1, 0.1]),
        measured(flow_setting(0.7, 8, 1.0), [0.0, 0.0]),
        measured(COOLED, [0.2, 0.2]),
        measured({**COOLED, "matches": "0.5"}, [0.4, 0.4]),
    ]
    picture = exact_picture(rows)
    lines = {series.label: dict(zip(series.x, series.y, strict=True)) for series in picture.series}
    assert lines["deterministic"] == pytest.approx({4.0: 0.6, 8.0: 0.2})
    assert lines["re-injection 1"] == pytest.approx({4.0: 0.1})  # none wrong: nothing to show on a log axis
    assert lines["deterministic, colder"] == pytest.approx({4.0: 0.2})
    assert lines["draws of the law itself"] == pytest.approx({4.0: 0.03, 8.0: 0.03})
    assert (picture.series[0].low[0], picture.series[0].high[0]) == (0.5, 0.7)


def test_the_command_resumes_writes_table_and_picture_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_text(tmp_path / "text.jsonl")
    # A model without a denoiser: none is needed.
    only(with_identity(tiny_bundle(), source=str(source)), "autoencoder", "readout").save_pretrained(tmp_path / "model")
    few = ["--num_latents", "8", "--samples", "3", "--device", "cpu", "--cache_dir", str(tmp_path / "cache")]
    argv, folder = ["--latents", str(tmp_path / "model"), "--out", str(tmp_path), *few], tmp_path / "latents"
    assert errors_to_exit_code(main, argv) == 0
    whole = rows_in(folder / ROWS_FILE)
    lines = [json.dumps(row) + "\n" for row in whole]
    (folder / ROWS_FILE).write_text("".join(lines[:5]) + lines[5][:40])  # killed while it wrote the sixth
    capsys.readouterr()
    assert errors_to_exit_code(main, argv) == 0
    resumed = rows_in(folder / ROWS_FILE)
    assert [row["values"] for row in resumed] == [row["values"] for row in whole]
    assert (folder / TABLE_FILE).read_text() in capsys.readouterr().out
    assert (folder / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert errors_to_exit_code(main, [*argv, "--num_latents", "100000"]) == 2
    error = capsys.readouterr().err
    assert "train blocks without padding" in error.splitlines()[-1] and "Traceback" not in error
