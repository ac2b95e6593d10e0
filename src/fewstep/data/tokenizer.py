"""Text to tokens and back: a byte-level BPE trained here, or any fast tokenizer of transformers."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fewstep.errors import UserError, first_line

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE (arXiv:1508.07909, on bytes) with ``<|endoftext|>`` as token 0, for end and padding.

    The same texts in the same order give the same tokenizer. A short text may give fewer than ``vocab_size`` tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    special = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def load_tokenizer(path_or_name: str | Path) -> "PreTrainedTokenizerFast":
    """A tokenizer from a folder or from the hub, with an end-of-text and a padding token.

    Without an end-of-text token, ``[SEP]`` of BERT is taken, or ``<|endoftext|>`` is added; one without padding
    pads with its end-of-text. Raises ``UserError`` for a missing or empty one, and for one without a fast backend.
    """
    from transformers import AutoTokenizer

    name, folder = str(path_or_name), Path(path_or_name).expanduser()
    if not folder.is_dir():
        from fewstep.data import hub  # for hub names only

        folder = hub.model_snapshot(name, ("*.json", "*.txt", "*.model"), ignored=("*/*",), kind="tokenizer")
    elif not (folder / "tokenizer.json").exists() and not (folder / "tokenizer_config.json").exists():
        raise UserError(f"folder {folder} holds no tokenizer.json: give a folder written by save_pretrained")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        remedy = "give a folder written by save_pretrained, or a hub name"
        raise UserError(f"tokenizer {name} cannot be loaded ({first_line(error, 160)}): {remedy}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer {name} has no fast backend: give one with a tokenizer.json")
    if len(tokenizer) <= 1 or not tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False):
        raise UserError(f"tokenizer {name} is empty ({len(tokenizer)} tokens): its vocabulary did not load")
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": tokenizer.sep_token or END_OF_TEXT})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash (64 hex digits) of the backend's JSON without its padding and truncation, which mere use changes."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for transient in ("padding", "truncation"):
        state.pop(transient, None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def vocabulary_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Number of ids that embeddings need: the largest id plus 1. ``len(tokenizer)`` is too small if ids are skipped."""
    return max(tokenizer.get_vocab().values()) + 1


def decode_blocks(tokenizer: "PreTrainedTokenizerFast", ids: Tensor) -> tuple[str, ...]:
    """Text of each row of ``ids`` (B, L): the whole block, an end-of-text shown as an empty line between documents."""
    return tuple("\n\n".join(filter(str.strip, decode_documents(tokenizer, row))) for row in ids.tolist())


def decode_documents(tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int]) -> list[str]:
    """The texts of one block, split at every end-of-text: one more than it has of them, some may be empty."""
    ends = [place for place, token in enumerate(ids) if token == tokenizer.eos_token_id]
    parts = [list(ids[first + 1 : end]) for first, end in zip([-1, *ends], [*ends, len(ids)], strict=True)]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return [str(tokenizer.decode(part, **options)) for part in parts]


@dataclass(frozen=True)
class EncodedDocument:
    """``ids`` (n,) int32 and ``num_bytes`` (n,) int32: the UTF-8 bytes of text that each token stands for.

    ``unknown_tokens`` of them are the tokenizer's unknown token; ``lost_bytes`` of the text are spelled by no other.
    """

    ids: np.ndarray
    num_bytes: np.ndarray
    unknown_tokens: int = 0
    lost_bytes: int = 0

    def __add__(self, other: "EncodedDocument") -> "EncodedDocument":
        ids, num_bytes = np.append(self.ids, other.ids), np.append(self.num_bytes, other.num_bytes)
        unknown_tokens, lost_bytes = self.unknown_tokens + other.unknown_tokens, self.lost_bytes + other.lost_bytes
        return EncodedDocument(ids, num_bytes, unknown_tokens, lost_bytes)


class DocumentEncoder:
    """Tokens of documents with their bytes, on a private copy of the tokenizer's backend.

    Strings in a text that look like special tokens are encoded as the ordinary text they are. A byte-level token has
    the bytes it spells; any other has the text from the end of the token before it to its own end, so that white space
    which the tokenizer swallows is counted too.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        from tokenizers import Tokenizer

        state = tokenizer.backend_tokenizer.to_str()
        self._unknown_id = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        self._backend = Tokenizer.from_str(state)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self._is_byte_level = _is_byte_level(json.loads(state))
        # A byte-level token is written with one character a byte, an added one as plain text.
        sizes = {number: len(token) for token, number in self._backend.get_vocab(with_added_tokens=True).items()}
        added = self._backend.get_added_tokens_decoder()
        sizes |= {number: len(token.content.encode()) for number, token in added.items()} | {self._unknown_id: 0}
        self._token_bytes = np.array([sizes.get(number, 0) for number in range(max(sizes) + 1)], np.int32)

    def encode(self, texts: list[str]) -> list[EncodedDocument]:
        """Each text's tokens, without any special tokens around them.

        Give about a MiB of text at a time: what the tokenizer keeps meanwhile is a hundred times the size of the ids.
        """
        encode = self._backend.encode_batch_fast if self._is_byte_level else self._backend.encode_batch
        return [self._document(*pair) for pair in zip(texts, encode(texts, add_special_tokens=False), strict=True)]

    def is_lossless(self, texts: list[str]) -> bool:
        """Whether the tokens of each text spell it again, white space aside (a lowercasing tokenizer does not)."""
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        decoded = [self._backend.decode(encoding.ids, skip_special_tokens=False) for encoding in encodings]
        return ["".join(text.split()) for text in decoded] == ["".join(text.split()) for text in texts]

    def _document(self, text: str, encoding: "Encoding") -> EncodedDocument:
        ids = np.asarray(encoding.ids, dtype=np.int32)
        known = ids != self._unknown_id
        if self._is_byte_level:
            num_bytes = self._token_bytes[ids]
            lost = max(0, len(text.encode()) - int(num_bytes.sum()))
            num_bytes[-1:] += lost
        else:
            starts, ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
            num_bytes = _bytes_by_ends(text, ends)
            opened, closed = (np.bincount(places[known], minlength=len(text) + 1) for places in (starts, ends))
            gaps = np.flatnonzero(np.cumsum(opened - closed)[:-1] == 0)
            lost = sum(len(text[place].encode()) for place in gaps if not text[place].isspace())
        return EncodedDocument(ids, num_bytes, int((~known).sum()), lost)


def _is_byte_level(state: dict) -> bool:
    """Whether tokens spell the text's bytes exactly: no normaliser, no space put in front."""
    parts = [state.get("pre_tokenizer") or {}]
    parts += parts[0].get("pretokenizers", [])
    levels = [part for part in parts if part.get("type") == "ByteLevel"]
    plain = all(not part.get("add_prefix_space", True) for part in levels)
    return bool(levels) and plain and state.get("normalizer") is None


def _bytes_by_ends(text: str, ends: np.ndarray) -> np.ndarray:
    """Bytes (n,) from the end of the token before to its own, ``ends`` (n,) in characters; the last takes the rest."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)  # of a character in UTF-8
    bytes_before = np.cumsum([0, *sizes])
    reached = bytes_before[np.maximum.accumulate(ends)]
    reached[-1:] = bytes_before[-1]
    return np.diff(reached, prepend=0).astype(np.int32)
