"""Text to blocks of tokens: sources, tokenizer, packing, batches; and images, for comparison.

Names are imported when they are first asked for (PEP 562): sampling needs the tokenizer only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.data.batches import StepBatchSampler, collate
    from fewstep.data.corpus import PreparedCorpus, StreamingCorpus, prepare_corpus, streaming_corpus
    from fewstep.data.images import Digits, DrawnShapes, ImageSource, image_source
    from fewstep.data.packing import PackingReport, SplitReport
    from fewstep.data.settings import CorpusSettings
    from fewstep.data.sources import SOURCES
    from fewstep.data.stream import BlockStream
    from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer, vocabulary_size

__all__ = [
    "SOURCES",
    "BlockStream",
    "CorpusSettings",
    "Digits",
    "DrawnShapes",
    "ImageSource",
    "PackingReport",
    "PreparedCorpus",
    "SplitReport",
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


def __getattr__(name: str) -> Any:
    """A name of ``__all__`` from the file that defines it."""
    if name in __all__:
        for file in ("tokenizer", "settings", "sources", "batches", "packing", "stream", "images", "corpus"):
            module = import_module(f"fewstep.data.{file}")
            if getattr(module, name, None) is not None:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
