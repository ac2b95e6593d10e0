"""The table: its yardsticks are what they say, its numbers those of a plain calculation."""

import json
import math

import pytest
import torch
from datasets import Dataset

from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks, shuffle_words, shuffled_blocks, token_counts, unigram_blocks
from fewstep.evaluation.generation import evaluate_generation
from fewstep.evaluation.scoring import perplexity_of_blocks, score_blocks
from fewstep.evaluation.table import GenerationTable
from fewstep.pipeline import TextGenerator, decode_blocks
from fewstep.readouts import tokens_to_first_end
from fewstep.types import TokenBatch
from tests.bundles import BLOCK_SIZE, LINES, only, tiny_bundle, tokenizer


def real_blocks(block_size: int = BLOCK_SIZE) -> TokenBatch:
    """The lines, an end of text between them, cut into blocks."""
    end = tokenizer().eos_token_id
    stream = [token for line in LINES for token in [*tokenizer()(line)["input_ids"], end]]
    ids = torch.tensor(stream[: len(stream) // block_size * block_size]).reshape(-1, block_size)
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.fixture(scope="module")
def table() -> GenerationTable:
    counts = torch.ones(len(tokenizer()))
    generator = TextGenerator(tiny_bundle())
    return evaluate_generation(
        generator,
        real_blocks(),
        counts,
        steps=(1, 3),
        readouts=("parallel", "head"),
        reinjections=(0.0, 1.0),
        num_resamples=50,
        batch_size=4,
    )


def test_all_rows_are_there_with_as_many_samples_as_real_text(table: GenerationTable) -> None:
    assert [(row.name, row.readout, row.reinjection, row.num_steps, row.nfe) for row in table.rows] == [
        ("held-out text", None, None, None, None),
        ("words shuffled", None, None, None, None),
        ("unigram draws", None, None, None, None),
        ("language model", None, None, None, None),
        ("flow", "parallel", 0.0, 1, 1),
        ("flow", "parallel", 0.0, 3, 3),
        ("flow", "parallel", 1.0, 1, 1),
        ("flow", "parallel", 1.0, 3, 3),
        ("flow", "head", 0.0, 1, 1),
        ("flow", "head", 0.0, 3, 3),
        ("flow", "head", 1.0, 1, 1),
        ("flow", "head", 1.0, 3, 3),
    ]
    assert {row.num_samples for row in table.rows} == {len(real_blocks().ids)}
    timed = [row.name in ("language model", "flow") for row in table.rows]
    assert [row.seconds_per_1000_tokens is not None for row in table.rows] == timed
    for row in table.rows:
        assert row.perplexity_interval.low <= row.perplexity <= row.perplexity_interval.high
        assert 0 <= row.entropy_nats <= math.log(BLOCK_SIZE)


def test_perplexity_is_that_of_the_language_model_over_all_tokens(table: GenerationTable) -> None:
    bundle, real = tiny_bundle(), real_blocks()
    with torch.no_grad():
        network = bundle.language_model
        log_probs = network(network.shift_right(real.ids)).double().log_softmax(-1)
    nats = -log_probs.gather(-1, real.ids[..., None])
    assert table.row("held-out text").perplexity == pytest.approx(math.exp(nats.mean()), rel=1e-5)
    for gamma in (0.0, 1.0):
        made = TextGenerator(bundle).generate(len(real.ids), 3, readout="head", reinjection=gamma, batch_size=4)
        scores = score_blocks(bundle.scorer(), made.ids, torch.ones_like(made.ids, dtype=torch.bool), batch_size=3)
        row = table.row("flow", "head", 3, gamma)
        assert row.perplexity == pytest.approx(perplexity_of_blocks(scores.stacked()), rel=1e-5)
        assert row.examples == made.texts[:3]


def test_tokens_that_do_not_count_change_no_score() -> None:
    real = real_blocks()
    mask = torch.arange(BLOCK_SIZE) < torch.randint(1, BLOCK_SIZE, (len(real.ids), 1))
    changed = torch.where(mask, real.ids, 7)
    ours, theirs = (score_blocks(tiny_bundle().scorer(), ids, mask) for ids in (real.ids, changed))
    torch.testing.assert_close(ours.nats, theirs.nats)
    assert torch.equal(ours.tokens, mask.sum(-1).double())


def test_the_table_survives_json_and_prints_every_row(table: GenerationTable) -> None:
    assert GenerationTable.from_dict(json.loads(table.to_json())) == table
    assert table.to_markdown().count("\n| ") == len(table.rows) + 1
    lines = table.to_text().splitlines()
    assert len(lines) == len(table.rows) + 3
    assert all(str(row.num_samples) in line for row, line in zip(table.rows, lines[2:], strict=False))
    with pytest.raises(KeyError, match="99 steps"):
        table.row("flow", "parallel", 99)


def test_progress_tells_every_row_and_a_missing_part_is_told() -> None:
    seen: list[tuple[int, int, str]] = []
    counts = torch.ones(len(tokenizer()))
    parts = tiny_bundle()
    evaluate_generation(
        TextGenerator(only(parts, "autoencoder", "readout", "denoiser", "language_model")),
        real_blocks(),
        counts,
        steps=(2,),
        readouts=("parallel",),
        num_resamples=2,
        progress=lambda *news: seen.append(news),
    )
    assert [(done, total) for done, total, _ in seen] == [(i, 5) for i in range(1, 6)]
    assert seen[-1][2] == "flow parallel K=2 gamma=0.0"
    with pytest.raises(UserError, match="no language_model"):
        evaluate_generation(TextGenerator(only(parts, "denoiser")), real_blocks(), counts)
    with pytest.raises(UserError, match="expected at least one block of 8 tokens"):
        evaluate_generation(TextGenerator(parts), real_blocks(4), counts)


def test_shuffling_keeps_the_words_and_the_white_space(generator: torch.Generator) -> None:
    documents = ["the old ship\n\nsailed past", "", " nobody knew "]
    shuffled = shuffle_words(documents, generator)
    assert sorted(" ".join(shuffled).split()) == sorted(" ".join(documents).split())
    assert shuffled != documents
    assert [text.count("\n\n") for text in shuffled] == [1, 0, 0]
    assert [len(text.split()) for text in shuffled] == [5, 0, 2]


def test_shuffled_blocks_keep_the_words_of_each_block_but_what_no_longer_fits(generator: torch.Generator) -> None:
    real = real_blocks(16)
    shuffled = shuffled_blocks(real, tokenizer(), generator)
    assert shuffled.ids.shape == real.ids.shape
    compared = 0
    for block, ours, seen in zip(real.ids, shuffled.ids, shuffled.mask, strict=True):
        before, after = (decode_blocks(tokenizer(), row[None])[0].split() for row in (block, ours[seen]))
        if len(after) and not seen.all():  # nothing was cut off
            assert sorted(before) == sorted(after)
            compared += 1
        assert not (set(after[:-1]) - set(before))
    assert not torch.equal(shuffled.ids, real.ids)
    assert compared


def test_unigram_draws_follow_the_counts(generator: torch.Generator) -> None:
    counts = torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    drawn = unigram_blocks(counts, 500, 40, generator).ids
    shares = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    torch.testing.assert_close(shares, counts / 10, atol=0.012, rtol=0)
    assert bool((shares[counts == 0] == 0).all())


def test_held_out_blocks_are_spread_and_counts_leave_padding_out() -> None:
    rows = [{"index": i, "input_ids": [i, 1, 0, 0], "length": 2 + i % 2, "num_bytes": i} for i in range(10)]
    split = Dataset.from_list(rows).with_format("numpy")
    tokens, num_bytes = held_out_blocks(split, 5)
    assert tokens.ids[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert num_bytes == 20
    assert tokens.mask.sum(-1).tolist() == [2] * 5
    assert token_counts(split, 12).tolist() == [1 + 5, 1 + 10, *[1] * 8, 0, 0]
    with pytest.raises(UserError, match="11 held-out blocks asked for, the validation split has 10"):
        held_out_blocks(split, 11)


def test_an_unpacked_block_counts_to_its_first_end_of_text() -> None:
    ids = torch.tensor([[5, 0, 0, 6], [5, 6, 7, 8], [0, 5, 0, 0]])
    expected = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert tokens_to_first_end(ids, 0).tolist() == expected
