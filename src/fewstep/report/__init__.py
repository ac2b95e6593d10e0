"""Pictures of results."""

from fewstep.report.figures import write_generation_figure
from fewstep.report.pictures import write_picture

__all__ = ["write_generation_figure", "write_picture"]
