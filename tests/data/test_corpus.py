"""What a prepared corpus promises."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fewstep.data
from fewstep.data.corpus import prepare_corpus, validation_rows
from fewstep.data.sources import CorpusSettings, speeches
from fewstep.data.tokenizer import tokenizer_fingerprint
from fewstep.errors import UserError
from tests.data.texts import make_text, write_jsonl


def decoded(split, tokenizer):
    ids = np.concatenate([row["input_ids"][: row["length"]] for row in split])
    return tokenizer.decode(ids)


def saved(folder, backend, pre_tokenizer, **special):
    """A tokenizer from outside, in a folder."""
    backend.pre_tokenizer = pre_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def texts():
    return [make_text(seed) for seed in range(40)]


def test_the_blocks_read_in_a_row_are_the_documents(texts, tmp_path, make_settings):
    corpus = prepare_corpus(make_settings(write_jsonl(tmp_path / "a.jsonl", texts), block_size=16))
    assert corpus.report.is_lossless
    held_out = [text for number, text in enumerate(texts) if number % 20 == 19]
    trained = [text for number, text in enumerate(texts) if number % 20 != 19]
    for split, report, expected in (
        (corpus.train, corpus.report.train, trained),
        (corpus.validation, corpus.report.validation, held_out),
    ):
        whole = "".join(text + "<|endoftext|>" for text in expected)
        tail = corpus.tokenizer(whole)["input_ids"][len(split) * 16 :]
        ids = [*np.concatenate(split[:]["input_ids"]), *tail]
        assert corpus.tokenizer.decode(ids) == whole
        assert report.dropped_tokens == len(tail) < 16
        assert report.tokens == len(split) * 16 + len(tail)
        assert report.documents == len(expected)
        assert report.bytes == sum(len(text.encode()) for text in expected)
        assert report.filled_positions == 0
        assert split[:]["index"].tolist() == list(range(len(split)))


def test_the_bytes_of_a_block_are_those_of_its_text(texts, tmp_path, make_settings):
    corpus = prepare_corpus(make_settings(write_jsonl(tmp_path / "a.jsonl", texts)))
    blocks = [(row, corpus.tokenizer.decode(row["input_ids"]).replace("<|endoftext|>", "")) for row in corpus.train]
    # A block may begin or end inside a character, which decodes to a replacement mark of another size.
    whole = [(int(row["num_bytes"]), len(text.encode())) for row, text in blocks if "\ufffd" not in text]
    assert len(whole) > len(blocks) / 2
    assert all(counted == size for counted, size in whole)


def test_a_block_of_one_document_begins_with_it_and_the_share_cut_off_is_reported(tmp_path, make_settings):
    texts = [make_text(seed, words=3 + seed % 30) for seed in range(40)] + [""]
    corpus = prepare_corpus(make_settings(write_jsonl(tmp_path / "a.jsonl", texts), blocks="documents", block_size=64))
    eos, cut = corpus.tokenizer.eos_token_id, 0
    for row, text in zip(corpus.train, [t for n, t in enumerate(texts[:40]) if n % 20 != 19], strict=True):
        *tokens, last = row["input_ids"][: row["length"]].tolist()
        assert (row["input_ids"][row["length"] :] == eos).all()
        cut += last != eos
        whole = corpus.tokenizer.decode(tokens)
        assert whole == text if last == eos else text.startswith(whole.rstrip("\ufffd")) and row["length"] == 64
    assert 0 < cut < 38
    assert corpus.report.train.cut_documents == cut
    assert f"{cut / 38:.1%} of the documents longer than a block and cut off" in str(corpus.report)
    assert "left out: 1 empty, 0 duplicate documents" in str(corpus.report)


def test_the_same_text_never_stands_on_both_sides(tmp_path, make_settings):
    texts = [make_text(seed % 25) + "  " * (seed // 25) for seed in range(60)]
    corpus = prepare_corpus(make_settings(write_jsonl(tmp_path / "a.jsonl", texts), validation_fraction=0.3))
    train, validation = (decoded(split, corpus.tokenizer) for split in (corpus.train, corpus.validation))
    for seed in range(25):
        opening = f"Document {seed}. "
        assert train.count(opening) + validation.count(opening) <= 1
    assert "left out: 0 empty, 35 duplicate documents" in str(corpus.report)
    assert corpus.report.train.documents + corpus.report.validation.documents == 25


@pytest.mark.parametrize(("count", "fraction"), [(249, 0.05), (10, 0.05), (2, 0.5), (2, 0.99), (1000, 0.3)])
def test_validation_documents_are_spread_and_leave_both_sides_filled(count, fraction):
    rows = validation_rows(count, fraction)
    assert 0 < rows.sum() < count
    assert abs(rows.sum() - count * fraction) <= 1
    gaps = np.diff(np.flatnonzero(rows))
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_one_document_is_cut_and_the_report_says_so(tmp_path, make_settings):
    path = tmp_path / "book.txt"
    text = make_text(1, words=2000)
    path.write_text(text, encoding="utf-8")
    corpus = prepare_corpus(make_settings(path, validation_fraction=0.1))
    assert "last 10%" in str(corpus.report)
    start = decoded(corpus.train, corpus.tokenizer)[:200]
    assert text.startswith(start)
    assert decoded(corpus.validation, corpus.tokenizer)[:100] in text[int(len(text) * 0.88) :]


def test_the_tokenizer_has_seen_train_text_only(texts, tmp_path, make_settings):
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    first = prepare_corpus(make_settings(path))
    texts[19] = "zqzqzq " * 500
    second = prepare_corpus(make_settings(write_jsonl(path, texts)))
    assert tokenizer_fingerprint(first.tokenizer) == tokenizer_fingerprint(second.tokenizer)
    texts[18] = "zqzqzq " * 500
    third = prepare_corpus(make_settings(write_jsonl(path, texts)))
    assert tokenizer_fingerprint(first.tokenizer) != tokenizer_fingerprint(third.tokenizer)


def test_another_tokenizer_is_taken_as_it_is_and_counts_all_bytes(texts, tmp_path, make_settings):
    words = sorted({word.lower() for text in texts for word in text.replace(".", " .").split()})
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.enable_truncation(8)
    folder = saved(tmp_path / "words", backend, pre_tokenizers.BertPreTokenizer(), unk_token="[UNK]")
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    corpus = prepare_corpus(make_settings(path, tokenizer=folder, blocks="documents", block_size=128))
    assert not corpus.report.is_lossless, "it loses capital letters"
    assert corpus.report.train.lost_bytes == 0
    assert corpus.tokenizer.eos_token == corpus.tokenizer.pad_token == "<|endoftext|>"
    assert len(corpus.tokenizer) == len(words) + 2
    assert int(np.sum(corpus.train[:]["num_bytes"])) == sum(
        len(t.encode()) for n, t in enumerate(texts) if n % 20 != 19
    )
    assert corpus.report.train.tokens > 60 * 38, "the saved truncation to 8 tokens must not apply"


def test_prepared_once_used_again_and_rebuilt_when_anything_changes_or_is_damaged(texts, tmp_path, make_settings):
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    first = prepare_corpus(make_settings(path))
    file, blocks = first.folder / "train.arrow", first.train[:]["input_ids"]
    stamp = file.stat().st_mtime_ns
    again = prepare_corpus(make_settings(path))
    assert (again.folder, str(again.report)) == (first.folder, str(first.report))
    assert file.stat().st_mtime_ns == stamp
    file.write_bytes(file.read_bytes()[:500])
    stale = first.folder.parent / f".{first.folder.name}.partial"
    stale.mkdir()
    assert np.array_equal(prepare_corpus(make_settings(path)).train[:]["input_ids"], blocks)
    assert not stale.exists()
    assert prepare_corpus(make_settings(path, block_size=16)).folder != first.folder
    write_jsonl(path, [*texts, "one more document"])
    assert prepare_corpus(make_settings(path)).folder != first.folder


def test_a_failed_preparation_leaves_nothing_behind(tmp_path, make_settings):
    settings = make_settings(write_jsonl(tmp_path / "a.jsonl", ["tiny", "small"]), block_size=500)
    with pytest.raises(UserError, match="fewer than one block of 500"):
        prepare_corpus(settings)
    assert [path.suffix for path in Path(settings.cache_dir).iterdir()] == [".lock"]


def test_two_processes_at_once_build_one_corpus(texts, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    program = (
        "from fewstep.data.corpus import prepare_corpus\nfrom fewstep.data.sources import CorpusSettings\n"
        f"c = prepare_corpus(CorpusSettings({str(path)!r}, vocab_size=300, cache_dir={str(tmp_path / 'cache')!r}))\n"
        "print(c.folder.name, int(c.train[:]['input_ids'].sum()))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(fewstep.data.__file__).parents[2])}
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1


def test_the_built_in_speeches_come_in_order_of_time_one_paragraph_a_line(tmp_path):
    texts = list(speeches())
    assert len(texts) > 200
    assert texts[0].startswith("Fellow-Citizens of the Senate and House of Representatives:\nI embrace")
    corpus = prepare_corpus(CorpusSettings(vocab_size=300, max_documents=20, cache_dir=str(tmp_path)))
    assert corpus.report.train.documents == 19
    assert "(5.0% of the documents, " in str(corpus.report)
    assert decoded(corpus.validation, corpus.tokenizer).startswith(texts[19][:500])
    assert texts[19][:500] not in decoded(corpus.train, corpus.tokenizer)
    assert corpus.folder.parent == tmp_path


def test_a_validation_split_with_more_text_than_the_train_split_is_refused(texts, tmp_path, make_settings):
    path = write_jsonl(tmp_path / "a.jsonl", [*texts[:19], make_text(99, words=5000)])
    with pytest.raises(UserError, match=r"validation split of .* would hold .* split its long documents"):
        prepare_corpus(make_settings(path))
    assert prepare_corpus(make_settings(path, validation_fraction=0.6)).report.validation.documents == 12


@pytest.mark.parametrize(("known", "outcome"), [(100, ""), (95, "WARNING"), (999, "refused")])
def test_unknown_tokens_are_counted_warned_of_and_refused(tmp_path, make_settings, known, outcome):
    words = [f"w{number}" for number in range(100)]
    path = write_jsonl(tmp_path / "a.jsonl", [" ".join(words[shift:] + words[:shift]) for shift in range(40)])
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words[: known if known < 999 else 40]])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    folder = saved(tmp_path / "words", backend, pre_tokenizers.WhitespaceSplit(), unk_token="[UNK]")
    settings = make_settings(path, tokenizer=folder)
    if outcome == "refused":
        with pytest.raises(UserError, match=r"does not know [56]\d\.\d% of the text .* choose another tokenizer"):
            prepare_corpus(settings)
        return
    report = prepare_corpus(settings).report
    assert report.train.unknown_tokens == 38 * (100 - known)
    assert report.train.lost_bytes == 38 * sum(len(word) for word in words[known:])
    assert report.is_lossless == (known == 100)
    assert (outcome in str(report)) and ("does not know" in str(report)) == (known < 100)


@pytest.mark.parametrize("unknown", [None, "[UNK]"])
def test_a_byte_level_vocabulary_without_all_bytes_loses_text_that_is_counted(texts, tmp_path, make_settings, unknown):
    letters = {letter: number for number, letter in enumerate(sorted({*pre_tokenizers.ByteLevel.alphabet()} - {"t"}))}
    if unknown:
        letters[unknown] = len(letters)
    backend = Tokenizer(models.BPE(letters, [], unk_token=unknown))
    folder = saved(tmp_path / "bytes", backend, pre_tokenizers.ByteLevel(add_prefix_space=False), unk_token=unknown)
    corpus = prepare_corpus(
        make_settings(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer=folder, blocks="documents")
    )
    trained = [text for number, text in enumerate(texts) if number % 20 != 19]
    assert corpus.report.train.lost_bytes == sum(text.count("t") for text in trained)
    assert corpus.report.train.unknown_tokens == (corpus.report.train.lost_bytes if unknown else 0)
    assert corpus.report.train.bytes == sum(len(text.encode()) for text in trained)
    assert "WARNING" in str(corpus.report)


def test_a_vocabulary_is_as_large_as_its_ids_can_be(tmp_path, texts, make_settings):
    letters = {letter: 2 * number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = saved(tmp_path / "bytes", Tokenizer(models.BPE(letters, [])), plain, eos_token=chr(256))
    corpus = prepare_corpus(make_settings(write_jsonl(tmp_path / "a.jsonl", texts), tokenizer=folder))
    assert np.max(corpus.train[:]["input_ids"]) < corpus.report.vocabulary == 511
    assert len(corpus.tokenizer) < 511


def outside_documents(argument="20"):
    """A source of one's own, as ``tests.data.test_corpus.outside_documents``."""
    return (make_text(seed) for seed in range(int(argument)))


def outside_splits():
    yield from (("validation" if seed % 4 == 0 else "train", make_text(seed)) for seed in range(40))


def test_a_function_from_outside_is_a_source_and_may_give_its_own_splits(make_settings):
    corpus = prepare_corpus(make_settings("tests.data.test_corpus.outside_documents:30"))
    assert corpus.report.train.documents + corpus.report.validation.documents == 30
    corpus = prepare_corpus(make_settings("tests.data.test_corpus.outside_splits"))
    assert corpus.report.validation.documents == 10
    held_out = decoded(corpus.validation, corpus.tokenizer)
    assert all((f"Document {seed}. " in held_out) == (seed % 4 == 0) for seed in range(40))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", "cannot be imported"),
        ("outside_splits:7", "cannot be called"),
        ("decoded", "cannot be called"),
        ("one_sided", "no documents of the validation split"),
        ("unknown_split", "expected a text, or a pair"),
        ("numbers", "document 1 is int, expected text"),
    ],
)
def test_a_source_from_outside_that_does_not_fit_is_one_line(make_settings, name, expected):
    with pytest.raises(UserError, match=expected) as caught:
        prepare_corpus(make_settings(f"tests.data.test_corpus.{name}"))
    assert "\n" not in str(caught.value)


def one_sided():
    return [("train", make_text(seed)) for seed in range(5)]


def unknown_split():
    return [("test", "text")]


def numbers():
    return [1, 2]
