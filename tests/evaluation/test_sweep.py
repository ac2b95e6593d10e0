"""The sweep: its samples are the generator's own, its numbers those of a plain calculation, and it goes on where it
stopped."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.trajectories import late_flip_rate
from fewstep.errors import UserError
from fewstep.evaluation.old_sweep import Sweep, model_digest
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.protocol import TO_FIRST_END, WHOLE_BLOCK, ScoringProtocol
from fewstep.evaluation.row_file import RowFile
from fewstep.evaluation.scorers import RunScorer, ScoredText
from fewstep.evaluation.scoring import corpus_perplexity
from fewstep.evaluation.sweep_measures import TrainText
from fewstep.evaluation.sweep_row import FLOW, SweepRow
from fewstep.evaluation.sweep_texts import Batch, FlowTexts, flow_setting
from fewstep.evaluation.yardsticks import FixedTexts, NoiseTexts, yardsticks
from fewstep.metrics.text import distinct_n
from fewstep.pipeline import TextGenerator, decode_blocks
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn
from fewstep.types import TokenBatch
from tests.bundles import BLOCK_SIZE, only, tiny_bundle, tokenizer, with_identity
from tests.evaluation.subjects import mild_bundle
from tests.evaluation.test_generation_table import real_blocks

SAMPLES, SEEDS = 3, (0, 5)
READOUTS = ("parallel", "head", "head_off")


class LengthScorer:
    """Gives every token one nat, a text as many as it has words, so that both inputs are seen to fit together."""

    name = "length"

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    def identity(self) -> dict[str, str]:
        return {"class": "LengthScorer"}

    def score(self, texts: Sequence[str], ids: Tensor, mask: Tensor) -> ScoredText:
        self.seen.append(tuple(texts))
        tokens = mask.sum(-1).double()
        return ScoredText(tokens * ids[:, 0].double().log1p(), tokens, tokens)


def protocol(scorer: object, **changes: object) -> ScoringProtocol:
    values = {
        "scorer": scorer.identity(),
        "num_samples": SAMPLES,
        "seeds": SEEDS,
        "block_size": BLOCK_SIZE,
        "end_of_text": WHOLE_BLOCK,
        "versions": {},
        "yardsticks": {},
    }
    return ScoringProtocol(**{**values, **changes})


def held_out() -> TokenBatch:
    count = SAMPLES * len(SEEDS)
    real = real_blocks()
    rows = torch.arange(count) % len(real.ids)
    return TokenBatch(real.ids[rows], real.mask[rows])


def flow_texts(generator: TextGenerator, *, steps: int = 3, gamma: float = 0.5, heat: float = 0.9) -> FlowTexts:
    return FlowTexts(generator, flow_setting(steps, f"{gamma:g}", heat), READOUTS)


def sweep(groups: Sequence[object] | None = None, scorer: object | None = None, **options: object) -> Sweep:
    bundle = mild_bundle()
    scorer = RunScorer(bundle.scorer(), tokenizer()) if scorer is None else scorer
    counts = torch.ones(len(tokenizer()))
    found = [*yardsticks(bundle, held_out(), counts, SAMPLES, 0), flow_texts(TextGenerator(bundle))]
    stream = real_blocks().ids.flatten()
    settings = {"batch_size": 2, "cci_examples": 2, "num_resamples": 50} | options
    how = settings.pop("protocol", None) or protocol(scorer)
    return Sweep(bundle, scorer, how, found if groups is None else groups, TrainText(stream, BLOCK_SIZE), **settings)


@pytest.fixture(scope="module")
def rows() -> list[SweepRow]:
    return list(sweep().rows())


def by(rows: list[SweepRow], name: str, readout: str | None = None) -> SweepRow:
    (found,) = (row for row in rows if (row.setting.name, row.setting.readout) == (name, readout))
    return found


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("gamma", "heat"), [(0.0, 1.0), (0.5, 0.9), (1.0, 1.0)])
def test_samples_are_those_that_the_generator_makes_of_the_same_seed(readout: str, gamma: float, heat: float) -> None:
    generator = TextGenerator(tiny_bundle())
    group = flow_texts(generator, gamma=gamma, heat=heat)
    for seed in SEEDS:
        made = [
            dict(zip(READOUTS, group.make(Batch(0, seed, first, count), group.settings), strict=True))[readout]
            for first, count in ((0, 2), (2, 1))
        ]
        theirs = generator.generate(
            SAMPLES,
            3,
            seed,
            readout="parallel" if readout == "parallel" else "head",
            head_context=readout != "head_off",
            reinjection=gamma,
            noise_temperature=heat,
            batch_size=2,
        )
        assert torch.equal(torch.cat([one.ids for one in made]), theirs.ids)
        assert torch.equal(torch.cat([one.x_1 for one in made]), theirs.x_1)


@pytest.mark.parametrize("readout", ["parallel", "head"])
def test_controls_and_snap_are_those_of_the_generator(readout: str) -> None:
    generator = TextGenerator(mild_bundle())
    seen = []
    for start, noise, snap in (
        (0.5, "fresh", "none"),
        (1.0, "reused", "none"),
        (1.0, "fresh", "every"),
        (0.8, "reused", "confidence:0.3"),
    ):
        sampler = flow_setting(4, "0.7", initial_temperature=start, noise=noise, snap=snap)
        group = FlowTexts(generator, sampler, (readout,))
        (made,) = group.make(Batch(0, 5, 0, SAMPLES), group.settings)
        options = {"readout": readout, "reinjection": 0.7, "initial_temperature": start}
        options["snap"] = None if snap == "none" else snap
        theirs = generator.generate(SAMPLES, 4, 5, reuse_noise=noise == "reused", **options)
        assert torch.equal(made.ids, theirs.ids)
        assert torch.equal(made.x_1, theirs.x_1)
        assert made.nfe == theirs.nfe + (1 if readout == "parallel" else BLOCK_SIZE)
        seen.append(made.x_1)
    assert not any(torch.equal(one, other) for index, one in enumerate(seen) for other in seen[:index])


def test_every_network_pass_is_counted(rows: list[SweepRow]) -> None:
    assert by(rows, FLOW, "parallel").nfe == 3 + 1
    assert by(rows, FLOW, "head").nfe == 3 + BLOCK_SIZE
    assert by(rows, FLOW, "head_off").nfe == 3 + 1  # nothing to wait for: one pass draws all
    assert by(rows, "language model").nfe == BLOCK_SIZE
    assert by(rows, "held-out text").nfe is None
    generator = TextGenerator(tiny_bundle())
    group = FlowTexts(generator, flow_setting(3, "by_position"), ("parallel",))
    for _ in range(2):  # the rule looks at the readout in every step but the last
        assert group.make(Batch(0, 0, 0, 2), group.settings)[0].nfe == 3 + 2 + 1
    snapping = FlowTexts(generator, flow_setting(3, "by_position", snap="every"), ("parallel",))
    assert snapping.make(Batch(0, 0, 0, 2), snapping.settings)[0].nfe == 3 * 3 + 2 + 1  # readout and encoder a step


def test_numbers_of_a_row_are_those_of_a_plain_calculation(rows: list[SweepRow]) -> None:
    generator = TextGenerator(mild_bundle())
    row = by(rows, FLOW, "head")
    ids = torch.cat(
        [
            generator.generate(
                SAMPLES, 3, seed, readout="head", reinjection=0.5, noise_temperature=0.9, batch_size=2
            ).ids
            for seed in SEEDS
        ]
    )
    network = generator.model.language_model
    with torch.no_grad():
        log_probs = network(network.shift_right(ids)).double().log_softmax(-1)
    nats = -log_probs.gather(-1, ids[..., None])[..., 0]
    assert row.perplexity == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    by_seed = [math.exp(part.mean()) for part in nats.split(SAMPLES)]
    assert row.perplexity_by_seed == pytest.approx(by_seed, rel=1e-5)
    shares = [torch.unique(sample, return_counts=True)[1].double() / BLOCK_SIZE for sample in ids]
    assert row.entropy_nats == pytest.approx(sum(float(-(p * p.log()).sum()) for p in shares) / len(ids))
    assert (row.distinct_1, row.distinct_4) == (distinct_n(ids, 1), distinct_n(ids, 4))
    assert row.perplexity_interval.low <= row.perplexity <= row.perplexity_interval.high
    assert row.entropy_interval.low <= row.entropy_nats <= row.entropy_interval.high
    assert (row.num_samples, row.scored_tokens) == (len(ids), ids.numel())
    assert row.tokens_per_second == pytest.approx(ids.numel() / row.seconds)
    assert row.examples[0] == decode_blocks(tokenizer(), ids[:1])[0]


def test_text_of_the_train_split_is_all_copies_and_shuffled_words_are_not(rows: list[SweepRow]) -> None:
    real, shuffled = by(rows, "held-out text"), by(rows, "words shuffled")
    assert (real.longest_copy_tokens, real.memorised_8grams) == (BLOCK_SIZE, 1.0)
    assert shuffled.memorised_8grams < 1


def test_the_late_flip_rate_is_that_of_the_diagnostics(rows: list[SweepRow]) -> None:
    generator = TextGenerator(mild_bundle())
    flow, rates = generator.model.flow(), []
    for seed in SEEDS:
        noise = example_generators(seed, 0, SAMPLES)
        sampler = FlowSampler(
            flow.path, grid=generator.model.identity.default_grid(), reinjection=0.5, noise_temperature=0.9
        )
        x_0 = randn((SAMPLES, *generator.model.latent_shape()), next(flow.parameters()), noise)
        mask = torch.ones(x_0.shape[:2], dtype=torch.bool)
        with torch.no_grad():
            path = sampler.sample(flow, x_0, num_steps=3, mask=mask, generator=noise)

        def read(z: Tensor) -> Tensor:
            return generator.model.reader()(z, torch.ones(z.shape[:2], dtype=torch.bool)).argmax(-1)

        rates.append(late_flip_rate(path.predictions, read, generator=torch.Generator())["late_flip_rate"].value)
    for readout in READOUTS:
        assert by(rows, FLOW, readout).late_flip_rate == pytest.approx(sum(rates) / len(rates))
    assert sum(rates) > 0
    one_step = list(sweep([flow_texts(TextGenerator(mild_bundle()), steps=1)]).rows())
    assert [row.late_flip_rate for row in one_step] == [None] * 3


def test_commitment_is_zero_exactly_where_it_is_switched_off_and_positive_where_it_is_on(
    rows: list[SweepRow],
) -> None:
    assert by(rows, FLOW, "head_off").cci == 0.0
    assert by(rows, FLOW, "head").cci > 0.01
    assert by(rows, FLOW, "parallel").cci is None
    assert all(row.cci is None for row in sweep(cci_examples=0).rows())


def test_batches_and_what_else_is_measured_change_no_figure(rows: list[SweepRow]) -> None:
    whole = list(sweep(batch_size=3).rows())
    ours, theirs = by(rows, FLOW, "head"), by(whole, FLOW, "head")
    assert theirs.perplexity == pytest.approx(ours.perplexity, rel=1e-5)
    assert (theirs.distinct_2, theirs.examples, theirs.cci) == (ours.distinct_2, ours.examples, pytest.approx(ours.cci))
    alone = list(sweep().rows([row.setting for row in rows if row.setting.readout != "head"]))
    assert [timeless(row) for row in alone] == [timeless(ours)]


def timeless(row: SweepRow) -> dict[str, object]:
    """Everything that another run must find too."""
    return {key: value for key, value in row.to_dict().items() if key not in ("seconds", "tokens_per_second")}


def test_generated_blocks_count_to_their_first_end_where_the_protocol_says_so() -> None:
    end = int(tokenizer().eos_token_id)
    ids = torch.tensor([[5, 6, end, 7, 8, 9, 9, 9], [5, 6, 7, 8, 5, 6, 7, 8]])
    padded = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]] * 2).bool()
    found = {}
    for name, mask in (("made", None), ("real", padded)):
        for rule in (WHOLE_BLOCK, TO_FIRST_END):
            scorer = LengthScorer()
            how = protocol(scorer, num_samples=2, seeds=(0,), end_of_text=rule)
            (row,) = sweep([FixedTexts(name, ids, mask, 2)], scorer, protocol=how).rows()
            found[name, rule] = row.scored_tokens
            texts = [row[seen][None] for row, seen in zip(ids, padded, strict=True)]
            if mask is not None:
                assert scorer.seen[-1] == tuple(decode_blocks(tokenizer(), text)[0] for text in texts)
    assert found == {
        ("made", WHOLE_BLOCK): 16,
        ("made", TO_FIRST_END): 3 + 8,
        ("real", WHOLE_BLOCK): 8,
        ("real", TO_FIRST_END): 8,
    }


def test_texts_of_which_nothing_is_scored_have_no_perplexity() -> None:
    scorer = LengthScorer()
    scorer.score = lambda texts, ids, mask: ScoredText(*torch.zeros(3, len(ids), dtype=torch.float64))
    (row,) = sweep([FixedTexts("made", held_out().ids, None, SAMPLES)], scorer).rows()
    assert (row.perplexity, row.perplexity_interval, row.perplexity_by_seed) == (None, None, (None, None))
    assert json.loads(json.dumps(row.to_dict(), allow_nan=False))
    assert len(row.cells()) == 17


def test_a_sample_of_which_nothing_is_scored_leaves_the_interval_finite() -> None:
    scorer = LengthScorer()
    seen = torch.ones(2, BLOCK_SIZE, dtype=torch.bool)
    seen[0] = False
    how = protocol(scorer, num_samples=2, seeds=(0,))
    (row,) = sweep([FixedTexts("made", held_out().ids[:2], seen, 2)], scorer, protocol=how, num_resamples=200).rows()
    assert row.perplexity_interval.low == row.perplexity == row.perplexity_interval.high


def test_texts_that_are_there_are_each_measured_once_whatever_the_seeds() -> None:
    scorer, ids = LengthScorer(), torch.arange(5, 5 + SAMPLES * len(SEEDS))[:, None].repeat(1, BLOCK_SIZE)
    (row,) = sweep([FixedTexts("made", ids, None, SAMPLES)], scorer).rows()
    assert row.distinct_1 == len(ids) / ids.numel()
    assert row.perplexity == pytest.approx(math.exp(ids[:, 0].double().log1p().mean()))


def test_perplexity_of_resamples_is_that_of_each() -> None:
    stacked = torch.rand(4, 6, 2, dtype=torch.float64) + 1
    each = [math.exp(part[:, 0].sum() / part[:, 1].sum()) for part in stacked]
    assert corpus_perplexity(stacked).tolist() == pytest.approx(each)


def test_rows_come_back_from_their_file_and_a_line_cut_off_is_written_again(
    rows: list[SweepRow], tmp_path: Path
) -> None:
    file = RowFile(tmp_path / "rows.jsonl", SweepRow)
    assert file.read() == []
    for row in rows[:3]:
        file.append(row)
    assert file.read() == rows[:3]
    whole = file.file.read_bytes()
    file.file.write_bytes(whole[:-20])  # a process was killed as it wrote
    assert file.read() == rows[:2]
    file.append(rows[2])
    assert file.file.read_bytes() == whole
    file.file.write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1 is no row"):
        file.read()


def test_a_stopped_sweep_makes_only_what_is_missing(rows: list[SweepRow], tmp_path: Path) -> None:
    file, again = RowFile(tmp_path / "rows.jsonl", SweepRow), sweep()
    for row in rows[:-1]:
        file.append(row)
    done = again.finished(file)
    made = list(again.rows([row.setting for row in done]))
    assert [row.setting for row in made] == [rows[-1].setting]
    assert timeless(made[0]) == timeless(rows[-1])


def test_rows_of_another_protocol_or_model_are_refused(rows: list[SweepRow], tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl", SweepRow)
    file.append(rows[0])
    scorer = RunScorer(mild_bundle().scorer(), tokenizer())
    other = sweep(protocol=protocol(scorer, num_samples=2))
    with pytest.raises(UserError, match=r"num_samples: 3 against 2.*give another --out") as caught:
        other.finished(file)
    assert "\n" not in str(caught.value)
    bundle = with_identity(mild_bundle(), trust_level=0.25)
    assert model_digest(bundle) != model_digest(mild_bundle()) == sweep().model
    changed = sweep()
    changed.model = model_digest(bundle)
    with pytest.raises(UserError, match="rows of another model"):
        changed.finished(file)


def test_a_setting_that_comes_twice_and_what_does_not_fit_are_refused() -> None:
    generator = TextGenerator(tiny_bundle())
    with pytest.raises(UserError, match=r"parallel K=3 gamma=0.5 T=0.9 comes twice"):
        sweep([flow_texts(generator), flow_texts(generator)])
    with pytest.raises(UserError, match="readout is 'paralel': expected one of parallel, head, head_off"):
        FlowTexts(generator, flow_setting(3, "0"), ("paralel",))
    without = TextGenerator(only(tiny_bundle(), "autoencoder", "denoiser"))
    with pytest.raises(UserError, match="has no head"):
        FlowTexts(without, flow_setting(3, "0"), ("head_off",))
    jumps = TextGenerator(with_identity(tiny_bundle(), trained_nfe=2))
    with pytest.raises(UserError, match="trained it for euler with 2 steps"):
        FlowTexts(jumps, flow_setting(3, "0"), ("parallel",))
    for wrong in ({"noise_temperature": -1.0}, {"initial_temperature": math.inf}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
            FlowTexts(generator, flow_setting(3, "0", **wrong), ("parallel",))
    with pytest.raises(UserError, match=r"4 steps with reinjection listed:0\.5,0\.5"):
        FlowTexts(generator, flow_setting(4, "listed:0.5,0.5"), ("parallel",))


def test_yardsticks_are_as_many_as_the_samples_and_without_a_language_model_one_fewer() -> None:
    counts = torch.ones(len(tokenizer()))
    bundle = only(tiny_bundle(), "autoencoder", "denoiser", "readout")
    names = [group.settings[0].name for group in yardsticks(bundle, held_out(), counts, SAMPLES, 0)]
    assert names == ["held-out text", "words shuffled", "unigram draws", "pure noise"]
    made = list(sweep().rows([replace(flow_setting(3, "0.5", 0.9), readout=name) for name in READOUTS]))
    assert [row.setting.name for row in made] == [*names, "language model"]
    assert {row.num_samples for row in made} == {SAMPLES * len(SEEDS)}


def test_the_floor_is_the_likeliest_token_of_the_noise_that_the_flow_starts_from() -> None:
    bundle = tiny_bundle()
    texts = NoiseTexts(bundle)
    (made,) = texts.make(Batch(0, 5, 1, 2), texts.settings)
    x_0 = randn((2, *bundle.latent_shape()), torch.zeros(()), example_generators(5, 1, 2))
    mask = torch.ones(x_0.shape[:2], dtype=torch.bool)
    assert torch.equal(made.ids, bundle.reader()(x_0, mask).argmax(-1))
    assert made.nfe == 1


def test_shares_of_processes_make_up_the_whole() -> None:
    items = list(range(7))
    shares = [Processes(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert Processes().share(items) == items
    assert Processes().gather(items) == items
    assert Processes().from_first("mine") == "mine"
