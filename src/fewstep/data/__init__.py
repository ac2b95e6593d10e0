"""Text to blocks of tokens: sources, tokenizer, packing, cache, batches. And images, for comparison."""

from fewstep.data.batches import StepBatchSampler, collate
from fewstep.data.block_stream import BlockStream
from fewstep.data.corpus import PreparedCorpus, prepare_corpus
from fewstep.data.images import Digits, DrawnShapes, ImageSource, image_source
from fewstep.data.report import PackingReport, SplitReport
from fewstep.data.settings import CorpusSettings
from fewstep.data.streaming import StreamingCorpus, streaming_corpus
from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer

__all__ = [
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
]
