"""The scoring protocol: what a model generates beside real text and other yardsticks, and its latents under noise."""

from fewstep.evaluation.baselines import held_out_blocks, token_counts
from fewstep.evaluation.generation import evaluate_generation
from fewstep.evaluation.robustness import NoiseRobustness, noise_robustness, reconstruction_bits_per_byte
from fewstep.evaluation.scoring import BlockScores, score_blocks
from fewstep.evaluation.table import GenerationRow, GenerationTable

__all__ = [
    "BlockScores",
    "GenerationRow",
    "GenerationTable",
    "NoiseRobustness",
    "evaluate_generation",
    "held_out_blocks",
    "noise_robustness",
    "reconstruction_bits_per_byte",
    "score_blocks",
    "token_counts",
]
