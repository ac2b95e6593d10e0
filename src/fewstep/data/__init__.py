"""Text to blocks of tokens: sources, tokenizer, packing, batches; and images, for comparison."""

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
