"""Texts that are partly given: what is given stays, what is written is scored given it, and nothing given is plain."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.rows import HELD_OUT, SHUFFLED, Row, label_of
from fewstep.evaluation.scorers import RunScorer
from fewstep.evaluation.sweep import Batch, Group, Samples, Sweep
from fewstep.evaluation.text_plan import TextStudy, around_gap, first_tokens
from fewstep.evaluation.texts import Sampling, flow_groups
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.prompts import Draft
from fewstep.shapes import example_generators
from fewstep.types import TokenBatch
from fewstep.writing import Writer
from tests.bundles import BLOCK_SIZE, STRIDE, tiny_bundle, tokenizer, with_identity
from tests.evaluation.test_texts import SAMPLES, SEEDS, held_out, study
from tests.test_prompts import conditional_bundle

PROMPT, GAP = 3, 2
SAMPLING = Sampling(2, "0.5")


class BigramModel(torch.nn.Module):
    """A language model whose law is a table: each token given the one before it."""

    def __init__(self) -> None:
        super().__init__()
        logits = torch.randn(len(tokenizer()), len(tokenizer()), generator=torch.Generator().manual_seed(0))
        self.table = torch.nn.Parameter(logits.log_softmax(-1))
        self.network = SimpleNamespace(config={})

    def token_nats(self, ids: Tensor) -> Tensor:
        first = self.table.new_full((len(ids), 1), math.log(len(self.table)))
        return torch.cat([first, -self.table[ids[:, :-1], ids[:, 1:]]], dim=1)


def ended() -> TokenBatch:
    """Blocks of one document each, of 6 tokens and its end, filled with further ends."""
    ids = held_out().ids.clone()
    ids[ids == tokenizer().eos_token_id] = 7
    ids[:, 6:] = tokenizer().eos_token_id
    return TokenBatch(ids, (torch.arange(BLOCK_SIZE) < 7).expand_as(ids))


def given_study(part: str, blocks: str = "packed", bundle: SavedModel | None = None, **changes: object) -> TextStudy:
    """The study of texts that are given their first tokens ("prompt"), all but a gap, or nothing."""
    own = study(**{"cci_examples": 0, "packed": blocks == "packed", **changes})
    tokens = held_out() if blocks == "packed" else ended()
    given = around_gap(tokens, GAP) if part == "gap" else first_tokens(tokens, PROMPT if part == "prompt" else 0)
    bundle = with_identity(own.bundle if bundle is None else bundle, blocks=blocks)
    return replace(own, bundle=bundle, real=replace(own.real, held_out=tokens, given=given, given_rule=part))


def swept(own: TextStudy, more: Sequence[Group] = (), readouts: Sequence[str] = ("parallel", "head")) -> list[Row]:
    flows = flow_groups(own.bundle, [SAMPLING], readouts, known=own.known)
    return list(Sweep(own.plan([*own.yardsticks(), *flows, *more])).rows())


def values_of(row: Row) -> dict[str, object]:
    return {name: value for name, value in row.values.items() if name not in ("accuracy", "kept", "tokens_per_second")}


@pytest.mark.parametrize("part", ["prompt", "gap"])
@pytest.mark.parametrize("blocks", ["packed", "documents"])
@pytest.mark.parametrize("bundle", [tiny_bundle(), conditional_bundle()], ids=["replacement", "reads_known"])
def test_what_is_given_stays_in_every_row_and_only_the_rest_counts(part: str, blocks: str, bundle: SavedModel) -> None:
    rows = swept(own := given_study(part, blocks, bundle))
    assert [row.setting["name"] for row in rows] == [
        *(HELD_OUT, SHUFFLED, "unigram draws", "language model", "flow", "flow")
    ]
    assert {row.value("kept") for row in rows} == {1.0}
    assert rows[0].value("accuracy") == 1 > rows[-1].value("accuracy")
    number = {"gap": GAP, "prompt": (BLOCK_SIZE if blocks == "packed" else 7) - PROMPT}[part]
    assert rows[0].value("tokens_per_sample") == number
    assert all(row.value("tokens_per_sample") <= BLOCK_SIZE - PROMPT for row in rows)
    assert part in rows[0].protocol["given"] and part in own.plan([]).caption


@pytest.mark.parametrize("bundle", [tiny_bundle(), conditional_bundle()], ids=["replacement", "reads_known"])
def test_the_commitment_dial_ends_at_whole_blocks_and_counts_passes_in_a_row(bundle: SavedModel) -> None:
    own, rest = given_study("prompt", bundle=bundle), BLOCK_SIZE - PROMPT
    samplings = [replace(SAMPLING, commit_tokens=commit) for commit in (0, rest, 2, 1)]
    rows = list(Sweep(own.plan(flow_groups(own.bundle, samplings, ["parallel"], known=own.known))).rows())
    assert [row.setting.get("commit_tokens") for row in rows] == [None, rest, 2, 1]
    whole, same, pairs, singles = rows
    assert same.examples == whole.examples and same.value("perplexity") == whole.value("perplexity")
    assert {row.value("kept") for row in rows} == {1.0}
    passes = SAMPLING.num_steps + 2  # the readout and the encoder too
    assert [row.value("nfe") for row in (pairs, singles)] == [-(-rest // 2) * passes, rest * passes]
    assert singles.value("perplexity") != whole.value("perplexity")


def test_a_last_token_alone_leaves_nothing_to_commit_to() -> None:
    plain = given_study("nothing", cci_examples=4)
    last = replace(plain, real=replace(plain.real, given=first_tokens(plain.real.held_out, BLOCK_SIZE - 1)))
    values = {own is last: swept(own, readouts=["head"])[-1].value("cci") for own in (plain, last)}
    assert values[False] > 0 == values[True], "all draws share the tokens before it"


def test_guidance_0_writes_what_no_prompt_changes_and_counts_both_passes() -> None:
    own, readouts = given_study("prompt", bundle=conditional_bundle()), ["parallel"]
    samplings = [replace(SAMPLING, guidance=scale) for scale in (1.0, 0.0)]
    plain, free = Sweep(own.plan(flow_groups(own.bundle, samplings, readouts, known=own.known))).rows()
    assert "guidance" not in plain.setting and free.setting["guidance"] == 0
    assert free.value("nfe") - plain.value("nfe") == SAMPLING.num_steps
    written = []
    for ids in (own.known.ids, own.known.ids.flip(0)):
        (group,) = flow_groups(own.bundle, samplings[1:], readouts, known=replace(own.known, ids=ids))
        x_1 = group.make(Batch(0, 0, 0, 4), [free.setting])[0].tensors["x_1"]
        written.append(x_1[:, PROMPT // STRIDE :])
    assert torch.equal(*written)


@pytest.mark.parametrize("axis", ["commit_tokens", "guidance"])
def test_an_axis_that_needs_a_prompt_is_refused_without_one(axis: str) -> None:
    with pytest.raises(UserError, match=f"{axis} is 2"):
        flow_groups(conditional_bundle(), [Sampling(2, **{axis: 2})], ["parallel"])


def test_where_nothing_is_given_the_rows_are_the_plain_ones() -> None:
    nothing = given_study("nothing")
    plain = replace(nothing, real=replace(nothing.real, given=None))
    theirs = {label_of(row.setting): values_of(row) for row in swept(plain)}
    ours = {label_of(row.setting): values_of(row) for row in swept(nothing)}
    for label, values in ours.items():
        expected = {name: value for name, value in theirs[label].items() if name != "rms_ratio"}
        assert values == expected
    assert theirs.keys() - ours.keys() == {"pure noise", "held-out text read back"}
    assert "given" not in plain.plan([]).full_protocol


@pytest.mark.parametrize("part", ["prompt", "gap"])
def test_perplexity_is_the_closed_form_of_a_law_that_sees_what_is_given(part: str) -> None:
    model = BigramModel()
    own = replace(given_study(part), scorer=RunScorer(model, tokenizer()))  # type: ignore[arg-type]
    row = swept(own)[0]
    nats, ids = [], held_out().ids
    for text, given in zip(ids.tolist(), own.real.given.tolist(), strict=True):
        for place in range(1, BLOCK_SIZE):
            if not given[place]:
                nats.append(-float(model.table.detach()[text[place - 1], text[place]]))
    assert row.value("perplexity") == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)
    assert row.value("scored_tokens") == len(nats) == len(ids) * (GAP if part == "gap" else BLOCK_SIZE - PROMPT)


def test_a_model_that_writes_what_was_held_out_is_right_everywhere_and_one_that_loses_the_prompt_is_seen() -> None:
    own = given_study("prompt")
    real = own.real.held_out.ids

    def copied(batch: Batch, settings: Sequence[dict]) -> list[Samples]:
        ids = real[batch.rows]
        broken = ids.clone()
        broken[:, [0, -1]] = (broken[:, [0, -1]] + 1) % len(tokenizer())
        return [Samples({"ids": ids}), Samples({"ids": broken})]

    held, *_, copy, broken = swept(own, [Group(({"name": "copy"}, {"name": "broken"}), copied)])
    assert values_of(copy) == values_of(held) and copy.value("accuracy") == copy.value("kept") == 1
    assert broken.value("kept") == pytest.approx(1 - 1 / PROMPT)
    assert broken.value("accuracy") == pytest.approx(1 - 1 / (BLOCK_SIZE - PROMPT))


@pytest.mark.parametrize("bundle", [tiny_bundle(), conditional_bundle()], ids=["replacement", "reads_known"])
@pytest.mark.parametrize("part", ["prompt", "gap"])
@pytest.mark.parametrize("readout", ["parallel", "head"])
def test_samples_are_those_that_the_writer_makes_of_the_same_draft_and_seed(
    bundle: SavedModel, part: str, readout: str
) -> None:
    own, generator = given_study(part, bundle=bundle), TextGenerator(bundle)
    writer = Writer(bundle, generator.sampler(2, 0.5), 2, generator.draw(readout)[0])
    (group,) = flow_groups(bundle, [SAMPLING], [readout], known=own.known)
    for index, seed in enumerate(SEEDS):
        rows = slice(index * SAMPLES, (index + 1) * SAMPLES)
        drafts = [
            Draft(ids=tuple(torch.where(given, ids, -1).tolist()), length=BLOCK_SIZE)
            for ids, given in zip(own.real.held_out.ids[rows], own.real.given[rows], strict=True)
        ]
        written = writer.write(drafts, example_generators(seed, 0, SAMPLES), 2)
        parts = [group.make(Batch(index, seed, first, 1, SAMPLES), group.settings)[0] for first in range(SAMPLES)]
        assert torch.cat([part.tensors["ids"] for part in parts]).tolist() == [text.ids for text in written.texts]


def test_shuffled_words_are_those_of_the_written_part() -> None:
    own = given_study("prompt")
    shuffled = own.yardsticks()[1].make(Batch(0, 0, 0, SAMPLES, SAMPLES), ({},))[0].tensors
    real = own.real.held_out.ids[:SAMPLES]
    assert torch.equal(shuffled["ids"][:, :PROMPT], real[:, :PROMPT])
    assert not torch.equal(shuffled["ids"], real)
    for ids, mask, text in zip(shuffled["ids"], shuffled["mask"], real, strict=True):
        before, after = (
            tokenizer().decode(part[PROMPT:], skip_special_tokens=True).split() for part in (text, ids[mask])
        )
        assert set(after[:-1]) <= set(before)
