"""The engine on numbers instead of text: what it makes, measures, resumes and refuses."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from fewstep.errors import UserError
from fewstep.evaluation.columns import markdown_table
from fewstep.evaluation.rows import (
    COLUMNS,
    Column,
    Row,
    RowFile,
    Value,
    check_protocol,
    differences,
    hash_of,
    rows_csv,
    table_lines,
)
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, Statistic, Sweep, model_digest
from fewstep.metrics.intervals import Interval, bootstrap_interval
from fewstep.shapes import example_generators
from tests.bundles import tiny_bundle, with_identity
from tests.training.threads import together

SAMPLES, SEEDS = 5, (0, 7)


def drawn(setting: dict, seed: int, first: int, count: int) -> torch.Tensor:
    """Numbers of which each depends on the seed, its index and the setting alone."""
    sources = example_generators(seed, first, count)
    return torch.stack([torch.randn(2, generator=source) for source in sources]) + setting.get("num_steps", 0)


class Maker:
    """Gives the samples of each setting, and remembers which batches it was asked for."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch, settings: Sequence[dict]) -> list[Samples]:
        self.batches.append(batch)
        x = [drawn(setting, batch.seed, batch.first, batch.count) for setting in settings]
        numbers = [{"nfe": setting["num_steps"]} if "num_steps" in setting else {} for setting in settings]
        return [Samples({"x": each, "unused": each}, 0.5, own) for each, own in zip(x, numbers, strict=True)]


MEASURE = Measure(
    values=lambda setting, samples: {
        "mean": Statistic(samples.tensors["x"][:, :1], seed_index=samples.tensors["seed_index"]),
        "count": Value(len(samples.tensors["x"])),
        "nothing": Statistic(torch.zeros(0, 1)),
    },
    take=lambda setting, batch, samples: {"x": samples.tensors["x"]},
    protocol={"measure": 1},
)


def plan(maker: Maker | None = None, **changes: object) -> Plan:
    maker = maker or Maker()
    groups = [
        Group(({"name": "real"},), maker),
        Group(tuple({"name": "flow", "num_steps": k} for k in (1, 3)), maker),
    ]
    fields = {"groups": groups, "measures": [MEASURE], "protocol": {"data": "numbers"}, "num_samples": SAMPLES}
    fields |= {"seeds": SEEDS, "model": "m" * 12, "batch_size": 2, "num_resamples": 50, "keep": ("mean",)}
    return Plan(**(fields | changes))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(Sweep(plan()).rows())


def test_a_row_holds_all_samples_of_all_seeds_in_their_order_with_interval_and_seeds_values(rows: list[Row]) -> None:
    assert [row.setting for row in rows] == [{"name": "real"}, *({"name": "flow", "num_steps": k} for k in (1, 3))]
    for row in rows:
        x = torch.cat([drawn(row.setting, seed, 0, SAMPLES) for seed in SEEDS])[:, :1].double()
        value = row.values["mean"]
        assert (row.num_samples, row.value("count"), row.seeds) == (len(x), len(x), SEEDS)
        assert value.value == pytest.approx(float(x.mean()))
        assert value.by_seed == pytest.approx([float(part.mean()) for part in x.split(SAMPLES)])
        expected = bootstrap_interval(x, lambda some: some.mean((-2, -1)), 50, torch.Generator().manual_seed(0))
        assert asdict(value.interval) == pytest.approx(asdict(expected))
        assert row.per_sample == {"mean": tuple(map(tuple, x.tolist()))}
        assert row.values["nothing"] == Value(None)
        assert row.value("nfe") == row.setting.get("num_steps")
        assert row.seconds == 0.5 * 6
        assert row.value("never measured") is row.interval("never measured") is None


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_change_no_value(rows: list[Row], size: int) -> None:
    assert [row.values for row in Sweep(plan(batch_size=size)).rows()] == [row.values for row in rows]


def test_every_group_is_warmed_up_and_whole_batches_are_shared_which_changes_no_row(rows: list[Row]) -> None:
    makers = [Maker() for _ in range(3)]
    first, *others = together(3, lambda processes: list(Sweep(plan(makers[processes.rank]), processes).rows()))
    assert first == rows and others == [[], []]
    for rank, maker in enumerate(makers):
        assert [batch.count for batch in maker.batches] == [1, 2 if rank < 2 else 1, 2 if rank < 2 else 1] * 2
    assert sorted({(b.seed, b.first) for maker in makers for b in maker.batches}) == sorted(
        (seed, first) for seed in SEEDS for first in (0, 2, 4)
    )


def test_a_group_may_have_another_model_and_number_of_samples() -> None:
    first, second = plan().groups
    (real, *_) = Sweep(plan(groups=[replace(first, model="other", num_samples=2), second])).rows()
    assert (real.model, real.num_samples) == ("other", 2 * len(SEEDS))


def test_rows_come_back_from_their_file_and_a_torn_line_is_written_again(
    rows: list[Row], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    assert file.read() == []
    for row in rows:
        file.append(row)
    assert file.read() == rows
    whole = file.file.read_bytes()
    file.file.write_bytes(whole[:-20])  # a process was killed as it wrote
    with caplog.at_level(logging.WARNING):
        assert file.read() == rows[:2]
    assert "the last line was cut off after" in caplog.text
    file.append(rows[2])
    assert file.file.read_bytes() == whole


def test_a_stopped_sweep_makes_only_what_is_missing_and_tells_how_far_it_is(rows: list[Row], tmp_path: Path) -> None:
    file, maker, seen = RowFile(tmp_path / "rows.jsonl"), Maker(), []
    for row in rows[:2]:
        file.append(row)
    found = Sweep(plan(maker)).run(file, lambda *news: seen.append(news))
    assert found == rows == file.read()
    assert seen == [(2, 3, "resumed"), (3, 3, "flow K=3")]
    assert len(maker.batches) == 7
    assert Sweep(plan(maker)).run(file) == rows and len(maker.batches) == 7
    more = plan(groups=[*plan().groups, Group(({"name": "new"},), Maker())])
    assert [row.setting["name"] for row in Sweep(more).run(file)] == ["real", "flow", "flow", "new"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 2}, "num_samples: 5 against 2.*give another --out"),
        ({"measures": [replace(MEASURE, protocol={"measure": 2})]}, "measure: 1 against 2"),
        ({"model": "n" * 12}, "rows of another model"),
    ],
)
def test_rows_of_another_protocol_or_model_are_refused_by_all_processes_or_renewed(
    rows: list[Row], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.append(rows[0])
    before = file.file.read_bytes()
    results = together(2, lambda processes: Sweep(plan(**changes), processes).run(file))
    for error in results:
        with pytest.raises(UserError, match=message):
            raise error
    assert file.file.read_bytes() == before
    renewed = Sweep(plan(**changes)).run(file, renew=True)
    assert len(renewed) == len(file.read()) == 3
    assert {row.protocol_hash for row in renewed} == {plan(**changes).protocol_hash}


NO_ROW = "line 2 is no row"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda row: row | {"more": 1}, NO_ROW),
        (lambda row: {name: value for name, value in row.items() if name != "model"}, NO_ROW),
        (lambda row: row | {"values": {"mean": {"value": 1.0, "interval": {"low": "1", "high": 2}}}}, NO_ROW),
        (lambda row: row | {"num_samples": "10"}, NO_ROW),
        (lambda row: row | {"seconds": float("nan")}, NO_ROW),
        (lambda row: row | {"setting": {"num_steps": 3}}, NO_ROW),
        (lambda row: row | {"protocol": {}}, "line 2: the protocol does not have the hash"),
    ],
)
def test_a_line_that_is_no_row_is_refused(rows: list[Row], tmp_path: Path, edit: object, message: str) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    file.append(rows[0])
    with file.file.open("a") as stream:
        stream.write(json.dumps(edit(asdict(rows[1]))) + "\n")
    with pytest.raises(UserError, match=message):
        file.read()


def test_a_setting_that_stands_twice_is_refused(rows: list[Row], tmp_path: Path) -> None:
    group = plan().groups[1]
    with pytest.raises(UserError, match="the setting flow K=1 comes twice"):
        plan(groups=[group, group])
    file = RowFile(tmp_path / "rows.jsonl")
    for row in (rows[0], rows[0]):
        file.append(row)
    with pytest.raises(UserError, match="row real twice: take one out by hand"):
        Sweep(plan()).run(file)


def test_rows_of_two_protocols_are_not_put_in_one_table(rows: list[Row]) -> None:
    other = next(Sweep(plan(protocol={"data": "others"})).rows())
    check_protocol(rows)
    with pytest.raises(UserError, match="data: 'numbers' against 'others'"):
        check_protocol([*rows, other])


def test_a_protocols_hash_is_that_of_its_values_alone() -> None:
    values = {"scorer": {"class": "RunScorer", "dtype": "float32"}, "seeds": [0, 1]}
    text = '{"scorer":{"class":"RunScorer","dtype":"float32"},"seeds":[0,1]}'
    assert hash_of(values) == hashlib.sha256(text.encode()).hexdigest()[:12], "it must not change between versions"
    other = {"scorer": {"class": "RunScorer", "dtype": "float16"}, "seeds": [0, 1]}
    assert differences(values, other) == ["scorer.dtype: 'float32' against 'float16'"]


def test_a_protocol_must_be_plain_values(tmp_path: Path) -> None:
    for wrong, error in ((float("nan"), ValueError), (object(), TypeError)):
        with pytest.raises(error):
            Sweep(plan(protocol={"data": wrong})).run(RowFile(tmp_path / "rows.jsonl"))


def test_a_table_has_the_columns_that_some_row_needs(rows: list[Row]) -> None:
    columns = {"name": COLUMNS["name"], "num_steps": COLUMNS["num_steps"], "mauve": COLUMNS["mauve"]}
    columns |= {"mean": Column("mean", ".1f", interval=True), "drawn": Column("drawn", usual="fresh")}
    row = replace(
        rows[1], values={"mean": Value(2.04, Interval(1.0, 3.0))}, setting=rows[1].setting | {"drawn": "fresh"}
    )
    assert table_lines([row], columns) == [("text", "K", "mean", "95 % interval"), ("flow", "1", "2.0", "1.0 - 3.0")]
    unusual = replace(row, setting=row.setting | {"drawn": "reused"}, values={})
    heading, *lines = table_lines([row, unusual], columns)
    assert heading == ("text", "K", "mean", "95 % interval", "drawn")
    assert lines == [("flow", "1", "2.0", "1.0 - 3.0", "fresh"), ("flow", "1", "", "", "reused")]
    markdown = markdown_table(table_lines([row], columns), "a caption")
    assert markdown.endswith("| flow | 1 | 2.0 | 1.0 - 3.0 |\n\na caption\n")
    assert rows_csv([row, rows[0]]).splitlines()[:2] == [
        "name,num_steps,drawn,mean,count,nothing,mean_low,mean_high,num_samples",
        "flow,1,fresh,2.04,,,1.0,3.0,10",
    ]


def test_a_models_digest_sees_its_identity_and_weights() -> None:
    changed = with_identity(tiny_bundle(), trust_level=0.25)
    assert model_digest(tiny_bundle()) == model_digest(tiny_bundle())
    assert len({model_digest(bundle) for bundle in (tiny_bundle(), tiny_bundle(1), changed)}) == 3
