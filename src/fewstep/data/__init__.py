"""Text to blocks of tokens: sources, tokenizer, packing, batches; and images, for comparison."""

from fewstep.data.batches import StepBatchSampler, collate
from fewstep.data.corpus import PreparedCorpus, prepare_corpus
from fewstep.data.images import Digits, DrawnShapes, ImageSource, image_source
from fewstep.data.sources import SOURCES, CorpusSettings
from fewstep.data.stream import BlockStream
from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer, vocabulary_size

__all__ = [
    "SOURCES",
    "BlockStream",
    "CorpusSettings",
    "Digits",
    "DrawnShapes",
    "ImageSource",
    "PreparedCorpus",
    "StepBatchSampler",
    "collate",
    "image_source",
    "load_tokenizer",
    "prepare_corpus",
    "tokenizer_fingerprint",
    "train_tokenizer",
    "vocabulary_size",
]
