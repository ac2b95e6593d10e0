"""The scoring protocol: what a model generates beside real text and other yardsticks, and its latents under noise."""

from fewstep.evaluation.baselines import held_out_blocks, token_counts
from fewstep.evaluation.decoder_diagnosis import diagnose_decoder
from fewstep.evaluation.diagnosis import Diagnosis, diagnose_text
from fewstep.evaluation.generation import evaluate_generation
from fewstep.evaluation.image_diagnosis import ImageSubject, diagnose_images, make_image_subject
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.protocol import ScoringProtocol, protocol_versions, same_protocol
from fewstep.evaluation.row_file import RowFile
from fewstep.evaluation.scorers import RunScorer, ScoredText, Scorer, TransformersScorer
from fewstep.evaluation.scoring import BlockScores, score_blocks
from fewstep.evaluation.subject import Subject, make_subject
from fewstep.evaluation.sweep import Sweep
from fewstep.evaluation.sweep_mauve import MauveReference
from fewstep.evaluation.sweep_measures import TrainText
from fewstep.evaluation.sweep_row import Setting, SweepRow, sweep_markdown, sweep_text
from fewstep.evaluation.sweep_texts import FlowTexts, flow_setting
from fewstep.evaluation.table import GenerationRow, GenerationTable
from fewstep.evaluation.yardsticks import yardsticks

__all__ = [
    "BlockScores",
    "Diagnosis",
    "FlowTexts",
    "GenerationRow",
    "GenerationTable",
    "ImageSubject",
    "MauveReference",
    "Processes",
    "RowFile",
    "RunScorer",
    "ScoredText",
    "Scorer",
    "ScoringProtocol",
    "Setting",
    "Subject",
    "Sweep",
    "SweepRow",
    "TrainText",
    "TransformersScorer",
    "diagnose_decoder",
    "diagnose_images",
    "diagnose_text",
    "evaluate_generation",
    "flow_setting",
    "held_out_blocks",
    "make_image_subject",
    "make_subject",
    "protocol_versions",
    "same_protocol",
    "score_blocks",
    "sweep_markdown",
    "sweep_text",
    "token_counts",
    "yardsticks",
]
