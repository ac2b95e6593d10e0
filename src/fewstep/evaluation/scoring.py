"""Old place of the corpus perplexity."""

from torch import Tensor

from fewstep.evaluation.scorers import corpus_perplexity as corpus_perplexity


def perplexity_of_blocks(stacked: Tensor) -> float:
    """Of one set of blocks (N, 2)."""
    return float(corpus_perplexity(stacked))
