"""Numbers that describe token samples: pure functions in float64, each saying what it counts."""

from fewstep.metrics.bootstrap import Interval, bootstrap_interval
from fewstep.metrics.diversity import distinct_n
from fewstep.metrics.entropy import pooled_entropy_nats, sample_entropies_nats, unigram_entropy_nats
from fewstep.metrics.likelihood import bits_per_byte, perplexity_from_nats

__all__ = [
    "Interval",
    "bits_per_byte",
    "bootstrap_interval",
    "distinct_n",
    "perplexity_from_nats",
    "pooled_entropy_nats",
    "sample_entropies_nats",
    "unigram_entropy_nats",
]
