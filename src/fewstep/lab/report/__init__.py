"""Pictures of results."""

from fewstep.evaluation.figures import write_generation_figure
from fewstep.evaluation.pictures import write_picture

__all__ = ["write_generation_figure", "write_picture"]
