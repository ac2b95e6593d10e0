"""Text to blocks of tokens: sources, tokenizer, packing, cache, batches."""

from fewstep.data.batches import StepBatchSampler, collate
from fewstep.data.block_stream import BlockStream
from fewstep.data.corpus import PreparedCorpus, prepare_corpus
from fewstep.data.report import PackingReport, SplitReport
from fewstep.data.settings import CorpusSettings
from fewstep.data.streaming import StreamingCorpus, streaming_corpus
from fewstep.data.tokenizer import load_tokenizer, tokenizer_fingerprint, train_tokenizer

__all__ = [
    "BlockStream",
    "CorpusSettings",
    "PackingReport",
    "PreparedCorpus",
    "SplitReport",
    "StepBatchSampler",
    "StreamingCorpus",
    "collate",
    "load_tokenizer",
    "prepare_corpus",
    "streaming_corpus",
    "tokenizer_fingerprint",
    "train_tokenizer",
]
