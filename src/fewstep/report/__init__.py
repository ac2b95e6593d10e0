"""Pictures of results."""

from fewstep.report.figures import write_generation_figure, write_loss_figure, write_robustness_figure

__all__ = ["write_generation_figure", "write_loss_figure", "write_robustness_figure"]
