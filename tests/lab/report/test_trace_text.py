"""A token's text by itself, whatever its tokenizer does to spaces and bytes."""

from transformers import PreTrainedTokenizerFast

from fewstep.lab.report.traces import token_text
from tests.bundles import tiny_bundle


def test_tokens_of_a_byte_level_vocabulary_put_together_are_the_text() -> None:
    tokenizer = tiny_bundle().tokenizer
    text = "the old ship\nsailed past  the lights"
    assert "".join(token_text(tokenizer, token) for token in tokenizer(text)["input_ids"]) == text
    assert token_text(tokenizer, tokenizer.eos_token_id) == "<|endoftext|>"


def test_a_part_of_a_character_shows_as_its_replacement() -> None:
    tokenizer = tiny_bundle().tokenizer
    parts = [token_text(tokenizer, token) for token in tokenizer("ü")["input_ids"]]  # not in the lines: two bytes
    assert parts == ["\ufffd", "\ufffd"]


def test_spaces_that_other_vocabularies_leave_out_of_a_first_word_are_there() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    spaced = Tokenizer(models.WordLevel({"▁the": 0, "▁old": 1, "ship": 2}, unk_token="ship"))
    spaced.pre_tokenizer, spaced.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spaced)
    assert [token_text(tokenizer, token) for token in (0, 1, 2)] == [" the", " old", "ship"]
    pieces = Tokenizer(models.WordPiece({"ship": 0, "##ing": 1, "[UNK]": 2}, unk_token="[UNK]"))
    pieces.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces)
    assert [token_text(tokenizer, token) for token in (0, 1)] == [" ship", "ing"]
