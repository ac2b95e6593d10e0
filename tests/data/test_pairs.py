"""Pairs of a prompt and a text: the prompt is the known part of a block, the text and its end are what is written."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fewstep.data.batches import collate
from fewstep.data.corpus import PreparedCorpus, prepare_corpus
from fewstep.data.packing import BlockPacker
from fewstep.data.sources import CorpusSettings
from fewstep.prompts import DraftMaker
from tests.bundles import tokenizer
from tests.runs import WORDS

BLOCK = 20


def write_pairs(file: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs), encoding="utf-8")
    return file


def copies(count: int) -> list[tuple[str, str]]:
    """Prompts of three words and their second word."""
    picked = [[WORDS[(number * step + step) % len(WORDS)] for step in (1, 3, 5)] for number in range(count)]
    return [(f"{number} {' '.join(words)}", words[1]) for number, words in enumerate(picked)]


def prepared(make_settings: Callable[..., CorpusSettings], file: Path) -> PreparedCorpus:
    fields = {"text_field": "answer", "prompt_field": "question", "block_size": BLOCK}
    return prepare_corpus(make_settings(file, **fields, validation_fraction=0.25))


def test_known_covers_the_prompt_exactly_and_the_answer_and_its_end_are_the_rest(
    make_settings: Callable[..., CorpusSettings], tmp_path: Path
) -> None:
    pairs = copies(40)
    corpus = prepared(make_settings, write_pairs(tmp_path / "pairs.jsonl", pairs))
    own, seen = corpus.tokenizer, set()
    maker = DraftMaker(own, BLOCK, is_document=True)
    for split in (corpus.train, corpus.validation):
        batch = collate([split[row] for row in range(len(split))])
        for ids, known, length in zip(batch["ids"], batch["known"], batch["length"], strict=True):
            prompt, text = own.decode(ids[known]), ids[~known]
            assert (prompt, own.decode(text[text != own.eos_token_id]).removeprefix(" ")) in pairs
            assert tuple(ids[known].tolist()) == maker.continued(prompt, None).ids  # as `fewstep sample` gives it
            assert int(length) == int(known.sum()) + int((text != own.eos_token_id).sum()) + 1
            assert not known[int(known.sum()) :].any()
            seen.add(prompt)
    assert len(seen) == len(pairs)


@pytest.mark.parametrize(("words", "cut"), [(1, 0), (2, 1), (40, 1)])
def test_a_prompt_gives_way_to_its_text_from_the_left_down_to_half_a_block(words: int, cut: int) -> None:
    prompt, answer = "nobody knew how far the old ship", " ship" * words
    whole, text = (tokenizer()(part)["input_ids"] for part in (prompt, answer))
    packer = BlockPacker(tokenizer(), BLOCK, one_document=True)
    blocks = packer.add_texts([prompt + answer], [len(prompt)])
    (size,), (ids,) = blocks["prompt"].tolist(), blocks["input_ids"].tolist()
    kept = min(len(whole), max(BLOCK - len(text) - 1, BLOCK // 2))
    assert size == kept and packer.report.cut_prompts == int(kept < len(whole)) == cut
    assert ids[:size] == whole[len(whole) - size :]
    end = tokenizer().eos_token_id
    assert ids[size:] == [*text, *[end] * BLOCK][: BLOCK - size]
    report = packer.report
    assert report.tokens == len(whole) + len(text) + 1
    assert report.tokens - report.dropped_tokens == BLOCK - report.filled_positions
    assert report.bytes == len(prompt + answer)
