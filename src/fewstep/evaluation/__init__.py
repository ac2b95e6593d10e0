"""The scoring protocol: what a model generates beside real text and other yardsticks, and its latents under noise."""

from fewstep.evaluation.baselines import held_out_blocks, token_counts
from fewstep.evaluation.diagnosis import Diagnosis, diagnose_text
from fewstep.evaluation.generation import evaluate_generation
from fewstep.evaluation.image_diagnosis import ImageSubject, diagnose_images, make_image_subject
from fewstep.evaluation.robustness import reconstruction_bits_per_byte
from fewstep.evaluation.scoring import BlockScores, score_blocks
from fewstep.evaluation.subject import Subject, make_subject
from fewstep.evaluation.table import GenerationRow, GenerationTable

__all__ = [
    "BlockScores",
    "Diagnosis",
    "GenerationRow",
    "GenerationTable",
    "ImageSubject",
    "Subject",
    "diagnose_images",
    "diagnose_text",
    "evaluate_generation",
    "held_out_blocks",
    "make_image_subject",
    "make_subject",
    "reconstruction_bits_per_byte",
    "score_blocks",
    "token_counts",
]
