"""Text to blocks of tokens: sources, tokenizer, packing, batches; and images, for comparison.

Names are imported when they are first asked for (PEP 562): sampling needs the tokenizer only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.data.batches import StepBatchSampler, collate
    from fewstep.data.corpus import PreparedCorpus, StreamingCorpus, prepare_corpus, streaming_corpus
    from fewstep.data.images import Digits, DrawnShapes, ImageSource, image_source
    from fewstep.data.settings import CorpusSettings
    from fewstep.data.sources import SOURCES
    from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer, vocabulary_size

__all__ = [
    "SOURCES",
    "CorpusSettings",
    "Digits",
    "DrawnShapes",
    "ImageSource",
    "PreparedCorpus",
    "StepBatchSampler",
    "StreamingCorpus",
    "collate",
    "image_source",
    "load_tokenizer",
    "prepare_corpus",
    "streaming_corpus",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "vocabulary_size",
]
_FILES = {
    "tokenizer": ("load_tokenizer", "tokenizer_fingerprint", "train_tokenizer", "vocabulary_size"),
    "images": ("Digits", "DrawnShapes", "ImageSource", "image_source"),
    "batches": ("StepBatchSampler", "collate"),
    "settings": ("CorpusSettings",),
    "sources": ("SOURCES",),
    "corpus": ("PreparedCorpus", "StreamingCorpus", "prepare_corpus", "streaming_corpus"),
}


def __getattr__(name: str) -> Any:
    """A name of ``__all__`` from the file that defines it."""
    for file, names in _FILES.items():
        if name in names:
            return getattr(import_module(f"fewstep.data.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
