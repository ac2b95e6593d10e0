"""The exact denoiser of a model's own latents: as a sweep's flow, and the study with its matched control."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.row_file import RowFile
from fewstep.evaluation.sweep_texts import Batch
from fewstep.lab.theory.exact import ExactTexts, exact_flow, train_blocks, train_latents
from fewstep.lab.theory.exact_rows import ExactRow, ExactSetting, gains, table_of
from fewstep.lab.theory.exact_study import ExactStudy, StudySettings, match
from fewstep.lab.theory.latents import LatentPosterior
from fewstep.paths import linear_path
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn
from tests.bundles import BLOCK_SIZE, tiny_bundle

SETTINGS = StudySettings(
    steps=(1, 2, 4), matched_steps=(4,), caps=(1.0,), cap_steps=(2,), num_samples=6, cap_samples=3, seed=1
)


def blocks(count: int = 20) -> Tensor:
    return torch.randint(4, 280, (count, BLOCK_SIZE), generator=torch.Generator().manual_seed(0))


def study(settings: StudySettings = SETTINGS) -> ExactStudy:
    bundle = tiny_bundle()
    return ExactStudy(bundle, train_latents(bundle, blocks()), settings, "tiny")


def test_an_exact_flow_reads_back_train_latents_in_a_sweep() -> None:
    bundle = tiny_bundle()
    latents = train_latents(bundle, blocks())
    texts = ExactTexts(bundle, exact_flow(bundle, latents, 0.0), 32, 0.0, ("parallel",))
    (made,) = texts.make(Batch(0, 0, 0, 5), texts.settings)
    apart = torch.cdist(made.x_1.flatten(1).double(), latents.flatten(1).double())
    assert float(apart.min(1).values.max()) < 1e-3
    assert texts.settings[0].name == "exact, h = 0"


def test_a_width_blurs_draws_by_h_and_no_width_gives_the_data() -> None:
    one = study()
    none, blurred = (one.sample(ExactSetting("draws", h), 6) for h in (0.0, 0.01))
    assert float(one.nearest(none)[0].max()) < 1e-5
    spread = one.nearest(blurred)[0].square().mean() / none[0].numel()
    assert float(spread.sqrt()) == pytest.approx(0.01, rel=0.5)


def test_rows_go_on_where_they_stopped_and_a_line_cut_off_is_made_again(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl", ExactRow)
    whole = list(study().rows([]))
    for row in whole[:5]:
        file.append(row)
    with file.file.open("a") as stream:
        stream.write('{"setting": {"ki')
    kept = file.read()
    assert kept == whole[:5]
    file.append(whole[5])
    assert file.read() == whole[:6]
    rest = list(study().rows(kept))
    assert [row.key for row in rest] == [row.key for row in whole[5:]]
    assert rest == whole[5:]
    assert all(study().owns(row) for row in whole)
    assert not study().owns(replace(whole[0], seed=2))


def test_every_reinjected_setting_gets_its_three_controls() -> None:
    rows = list(study().rows([]))
    controls = {
        (row.setting.kind, row.setting.num_steps, row.setting.reinjection)
        for row in rows
        if row.setting.matches is not None
    }
    expected = {(kind, 4, 0.0) for kind in ("noise", "initial")} | {("spread", 4, gamma) for gamma in (0.5, 1.0)}
    assert controls == expected
    assert len(gains(rows)) == 6
    assert "remains" in table_of(rows)
    for row in rows:
        if row.matched and row.setting.kind != "spread":
            own = next(r for r in rows if r.setting == ExactSetting("flow", 0.7, 4, row.setting.matches))
            assert row.distance == pytest.approx(own.distance, rel=0.05)


def test_each_control_cools_its_own_noise_and_1_is_the_plain_flow() -> None:
    one = study()
    plain = one.sample(ExactSetting("flow", 0.7, 2), 6)
    for kind in ("noise", "initial"):
        assert one.sample(ExactSetting(kind, 0.7, 2, temperature=1.0), 6).equal(plain)
        assert not one.sample(ExactSetting(kind, 0.7, 2, temperature=0.5), 6).equal(plain)
    no_start = one.sample(ExactSetting("initial", 0.7, 4, temperature=0.0), 6)
    assert torch.allclose(no_start, no_start[:1].expand_as(no_start), atol=1e-5)
    generators, latents = example_generators(SETTINGS.seed, 0, 6), one.latents
    x_0 = randn((6, *latents.shape[1:]), latents, generators)
    sampler = FlowSampler(linear_path(), noise_temperature=0.5)
    flow = LatentPosterior(latents, 0.7, linear_path())
    cold = sampler.sample(flow, x_0, num_steps=2, generator=generators).x_1
    torch.testing.assert_close(one.sample(ExactSetting("noise", 0.7, 2, temperature=0.5), 6), cold)


def wrong(setting: ExactSetting, shares: list[float]) -> ExactRow:
    return ExactRow(
        setting, "m", 1, len(shares), 0, tuple(shares), tuple(1.0 for _ in shares), temperature=0.8, matched=True
    )


@pytest.mark.parametrize(
    ("control", "share"),
    [
        (ExactSetting("noise", 0.7, 4, 0.0, matches=1.0), 0.25),  # 0.3 - 0.2 is left of 0.6 - 0.2
        (ExactSetting("spread", 0.7, 4, 1.0, matches=0.0), 0.75),  # 0.6 - 0.3 is left of 0.6 - 0.2
    ],
)
def test_what_remains_of_a_gain_is_counted_between_samples_equally_far_from_the_data(
    control: ExactSetting, share: float
) -> None:
    rows = [
        wrong(ExactSetting("flow", 0.7, 4, 0.0), [0.5, 0.6, 0.7, 0.6]),
        wrong(ExactSetting("flow", 0.7, 4, 1.0), [0.1, 0.2, 0.3, 0.2]),
        wrong(control, [0.2, 0.3, 0.4, 0.3]),
    ]
    (gain,) = gains(rows)
    assert gain.gain == pytest.approx(0.4)
    assert gain.share == pytest.approx(share)
    # All three differ by constants, and the samples are paired: nothing is left to vary.
    assert gain.share_interval.low == pytest.approx(share)
    assert gain.share_interval.high == pytest.approx(share)


def test_no_share_is_told_where_there_may_be_no_gain() -> None:
    rows = [
        wrong(ExactSetting("flow", 0.7, 4, 0.0), [0.1, 0.4, 0.0, 0.3]),
        wrong(ExactSetting("flow", 0.7, 4, 1.0), [0.3, 0.1, 0.3, 0.0]),
        wrong(ExactSetting("noise", 0.7, 4, 0.0, matches=1.0), [0.2, 0.2, 0.1, 0.1]),
    ]
    assert gains(rows)[0].share is None
    assert "undetermined" in table_of(rows)


def test_no_share_is_told_where_the_distances_did_not_match() -> None:
    rows = [
        wrong(ExactSetting("flow", 0.7, 4, 0.0), [0.5, 0.6, 0.7, 0.6]),
        wrong(ExactSetting("flow", 0.7, 4, 1.0), [0.1, 0.2, 0.3, 0.2]),
        replace(wrong(ExactSetting("noise", 0.7, 4, 0.0, matches=1.0), [0.2, 0.3, 0.4, 0.3]), matched=False),
    ]
    assert gains(rows)[0].share is None
    assert "not matched" in table_of(rows)


def test_a_match_is_the_first_on_the_way_though_the_distance_is_not_monotone() -> None:
    # 9 at 1, down to 5 at 0.6, up again: 6 is met at 0.7 and at 0.5.
    def samples(temperature: float) -> Tensor:
        return torch.tensor(5 + 10 * abs(temperature - 0.6))

    found, matched = match(samples, float, 6.0, (1.0, 0.8, 0.6, 0.4))
    assert matched
    assert found == pytest.approx(0.7, abs=0.01)
    assert match(samples, float, 4.0, (1.0, 0.8, 0.6, 0.4)) == (0.6, False)
    jumping, matched = match(lambda one: torch.tensor(9.0 if one > 0.7 else 5.0), float, 6.0, (1.0, 0.5))
    assert not matched
    assert jumping == pytest.approx(0.7, abs=1e-3)


def test_more_blocks_than_there_are_without_padding_are_refused() -> None:
    from datasets import Dataset

    train = Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6], [7, 8, 0]], "length": [3, 3, 2]})
    assert train_blocks(train, 2).tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(UserError, match="1 to 2"):
        train_blocks(train, 3)
