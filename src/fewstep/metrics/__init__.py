"""Numbers that describe samples of tokens and of images: pure functions in float64, each saying what it counts."""

from fewstep.metrics.bootstrap import Interval, bootstrap_interval
from fewstep.metrics.copies import CopyIndex, longest_copies, memorised_share
from fewstep.metrics.diversity import distinct_n
from fewstep.metrics.entropy import pooled_entropy_nats, sample_entropies_nats, unigram_entropy_nats
from fewstep.metrics.frechet import Moments, frechet_distance, moments
from fewstep.metrics.mauve import mauve_package_version, mauve_score
from fewstep.metrics.repetition import repeated_ngrams, repetition_shares
from fewstep.metrics.shares import Share, share_of

__all__ = [
    "CopyIndex",
    "Interval",
    "Moments",
    "Share",
    "bootstrap_interval",
    "distinct_n",
    "frechet_distance",
    "longest_copies",
    "mauve_package_version",
    "mauve_score",
    "memorised_share",
    "moments",
    "pooled_entropy_nats",
    "repeated_ngrams",
    "repetition_shares",
    "sample_entropies_nats",
    "share_of",
    "unigram_entropy_nats",
]
