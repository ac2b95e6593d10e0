"""Old place of some names of the scorers."""

from fewstep.evaluation.scorers import ScoredText as ScoredText
from fewstep.evaluation.scorers import Scorer as Scorer
from fewstep.evaluation.scorers import weights_digest as weights_digest
