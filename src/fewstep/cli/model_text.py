"""The text that a saved model was trained on, or another, cut as the model reads it."""

import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewstep.bundle import ModelBundle
    from fewstep.data import PreparedCorpus
    from fewstep.types import TokenBatch


def corpus_of(
    bundle: "ModelBundle",
    *,
    source: str | None,
    text_field: str,
    max_documents: int | None,
    cache_dir: str,
    pack: bool = True,
) -> "PreparedCorpus":
    """``source`` in blocks of the model's tokens; None means what its identity says. Raises ``UserError``."""
    from fewstep.data import CorpusSettings, prepare_corpus

    with tempfile.TemporaryDirectory() as folder:  # a checkpoint has no tokenizer folder to point at
        bundle.tokenizer.save_pretrained(folder)
        settings = CorpusSettings(
            source=source or bundle.identity.source,
            text_field=text_field,
            tokenizer=folder,
            block_size=bundle.identity.block_size,
            pack=pack,
            max_documents=max_documents,
            cache_dir=cache_dir,
        )
        return prepare_corpus(settings)


def packed_blocks(corpus: "PreparedCorpus", wanted: int) -> "TokenBatch":
    """``wanted`` held-out blocks and one to spare, spread evenly, or all there are.

    The last block of a packed split may be padded: one more is given, so that it can be left out.
    """
    from fewstep.evaluation import held_out_blocks

    return held_out_blocks(corpus.validation, min(wanted + 1, len(corpus.validation)))[0]
