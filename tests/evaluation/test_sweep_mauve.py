"""MAUVE in a sweep: of the scorer's features of the very texts of a row, against as much real text."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from fewstep.errors import UserError
from fewstep.evaluation.scorers import RunScorer
from fewstep.evaluation.sweep_mauve import MauveReference
from fewstep.evaluation.sweep_row import FLOW, HELD_OUT, SweepRow, sweep_text, table_lines
from fewstep.metrics.text import mauve_package_version, mauve_score
from fewstep.pipeline import TextGenerator
from fewstep.types import TokenBatch
from tests.bundles import BLOCK_SIZE, tiny_bundle, tokenizer
from tests.evaluation.subjects import mild_bundle
from tests.evaluation.test_sweep import SAMPLES, SEEDS, by, held_out, protocol, sweep, timeless


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the package: a number that any change of any feature moves, and that tells real from samples."""

    def compute_mauve(p_features: np.ndarray, q_features: np.ndarray, **settings: object) -> SimpleNamespace:
        assert p_features.dtype == q_features.dtype == np.float32
        sides = [features @ np.sin(np.arange(features.shape[1])) for features in (p_features, q_features)]
        return SimpleNamespace(mauve=float(np.tanh(2 * sides[0].mean() + sides[0].std() - sides[1].mean())))

    found = ModuleType("mauve")
    found.compute_mauve = compute_mauve
    monkeypatch.setitem(sys.modules, "mauve", found)
    return found


def run_scorer(batch_size: int = 64) -> RunScorer:
    return RunScorer(mild_bundle().scorer(), tokenizer(), batch_size=batch_size)


def reference(other: TokenBatch | None = None) -> MauveReference:
    return MauveReference(run_scorer(), tokenizer(), held_out(), other)


def measured(other: TokenBatch | None = None, **options: object) -> list[SweepRow]:
    return list(sweep(mauve=reference(other), **options).rows())


def test_a_rows_value_is_that_of_its_texts_against_the_held_out_ones() -> None:
    rows = measured()
    scorer, generator = run_scorer(), TextGenerator(mild_bundle())
    real = scorer.features([], held_out().ids, held_out().mask)
    for readout in ("parallel", "head"):
        options = {"readout": readout, "reinjection": 0.5, "noise_temperature": 0.9, "batch_size": 2}
        ids = torch.cat([generator.generate(SAMPLES, 3, seed, **options).ids for seed in SEEDS])
        expected = mauve_score(real, scorer.features([], ids, torch.ones_like(ids, dtype=torch.bool)))
        assert by(rows, FLOW, readout).mauve == pytest.approx(expected, rel=1e-4)
    assert len({row.mauve for row in rows if row.setting.name != HELD_OUT}) == len(rows) - 1
    plain = list(sweep().rows())
    assert [timeless(row) | {"mauve": None} for row in rows] == [timeless(row) for row in plain]


def test_held_out_text_is_compared_with_other_held_out_text_or_not_at_all() -> None:
    assert by(measured(), HELD_OUT).mauve is None
    other = TokenBatch(held_out().ids.roll(1, 1), held_out().mask)
    rows, scorer = measured(other), run_scorer()
    features = [scorer.features([], tokens.ids, tokens.mask) for tokens in (other, held_out())]
    assert by(rows, HELD_OUT).mauve == pytest.approx(mauve_score(*features), rel=1e-5)
    assert [timeless(row) for row in rows[1:]] == [timeless(row) for row in measured()[1:]]


def test_the_column_is_there_only_where_it_was_measured() -> None:
    rows = measured()
    heading, *lines = table_lines(rows)
    place = heading.index("MAUVE")
    assert heading[place - 1 : place + 2] == ("mem-8", "MAUVE", "late flips")
    assert [line[place] for line in lines] == ["" if row.mauve is None else f"{row.mauve:.3f}" for row in rows]
    found = sweep(mauve=reference())
    assert "MAUVE: against as much held-out text" in sweep_text(rows, found.caption())
    plain = sweep()
    assert "MAUVE" not in sweep_text(list(plain.rows()), plain.caption())


def test_the_protocol_tells_what_the_values_depend_on() -> None:
    scorer, told = run_scorer(), reference().protocol()
    assert told == {
        "mauve_features": "last hidden state of the scorer at the last token",
        "mauve_scaling": 5.0,
        "mauve_seed": 25,
        "mauve_text": mauve_package_version(),
    }
    assert protocol(scorer, yardsticks=told).hash != protocol(scorer).hash


def test_the_runs_features_have_read_all_of_a_text_and_nothing_behind_it(generator: torch.Generator) -> None:
    model = tiny_bundle().scorer()
    ids = torch.randint(len(tokenizer()), (7, BLOCK_SIZE), generator=generator)
    lengths = torch.tensor([8, 1, 3, 0, 5, 8, 2])
    mask = torch.arange(BLOCK_SIZE) < lengths[:, None]
    features = RunScorer(model, tokenizer(), batch_size=3).features([""] * 7, ids, mask)
    assert (features.dtype, features.shape) == (torch.float32, (7, 16))
    with torch.no_grad():
        for row, length, found in zip(ids, lengths.tolist(), features, strict=True):
            # The logits behind the last token are those of the block one token longer, whatever that token is.
            longer = torch.cat([row[:length], torch.tensor([3])])[None]
            logits = model.network(model.network.shift_right(longer))[0, -1]
            torch.testing.assert_close(model.network.outputs(found), logits, rtol=1e-4, atol=1e-4)
    behind = torch.where(mask, ids, (ids + 1) % len(tokenizer()))
    assert torch.equal(RunScorer(model, tokenizer(), batch_size=3).features([""] * 7, behind, mask), features)


def test_one_text_and_a_missing_package_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    one = TokenBatch(held_out().ids[:1], held_out().mask[:1])
    with pytest.raises(UserError, match="MAUVE of 1 text: expected at least 2"):
        MauveReference(run_scorer(), tokenizer(), one, None)
    monkeypatch.setitem(sys.modules, "mauve", None)
    for call in (mauve_package_version, reference):
        with pytest.raises(UserError, match=r"pip install 'fewstep\[mauve\]'"):
            call()
