"""Text to blocks of tokens: sources, tokenizer, packing, batches.

Names are imported when they are first asked for (PEP 562): sampling needs the tokenizer only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.data.batches import StepBatchSampler, collate
    from fewstep.data.corpus import PreparedCorpus, prepare_corpus
    from fewstep.data.sources import SOURCES, CorpusSettings
    from fewstep.data.stream import BlockStream
    from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer, vocabulary_size

__all__ = [
    "SOURCES",
    "BlockStream",
    "CorpusSettings",
    "PreparedCorpus",
    "StepBatchSampler",
    "collate",
    "load_tokenizer",
    "prepare_corpus",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "vocabulary_size",
]


def __getattr__(name: str) -> Any:
    """A name of ``__all__`` from the first file that has it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    files = ("tokenizer", "batches", "sources", "stream", "corpus")
    modules = (import_module(f"fewstep.data.{file}") for file in files)
    return next(getattr(module, name) for module in modules if hasattr(module, name))
