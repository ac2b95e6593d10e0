"""Runs of the flow stage with each objective, tiny, on a flow that they start from and learn from."""

from pathlib import Path

from fewstep.objectives import OBJECTIVES
from fewstep.training.command import main
from tests.runs import CONFIGS, Workshop

STUDENTS = [name for name in OBJECTIVES if name != "flow_matching"]


def needs_teacher(objective: str) -> bool:
    """Whether the objective of a file in ``configs/objectives`` learns from a flow."""
    return OBJECTIVES[objective].needs_teacher


def flow_arguments(workshop: Workshop, objective: str, run_dir: Path, *flags: str, steps: int = 4) -> list[str]:
    """``fit`` of the debug-sized flow with an objective's file; ``flags`` come last."""
    config = ["--config", str(CONFIGS / "objectives" / f"{objective}.yaml")]
    return workshop.arguments("flow", *config, f"--run_dir={run_dir}", *flags, steps=steps)


def trained_flow(workshop: Workshop) -> Path:
    """Model folder of a flow that the objectives may start from and learn from, made once."""
    folder = workshop.folder / "flow_matching"
    if not folder.exists():
        assert main(flow_arguments(workshop, "flow_matching", folder)) == 0
    return folder / "model"


def upon_a_flow(workshop: Workshop, objective: str, run_dir: Path, *flags: str, steps: int = 4) -> list[str]:
    """:func:`flow_arguments`, starting from the trained flow, which is also the teacher of those that need one."""
    flow = trained_flow(workshop)
    given = [f"--model.initialise_from={flow}", *([f"--model.teacher={flow}"] if needs_teacher(objective) else [])]
    return flow_arguments(workshop, objective, run_dir, *given, *flags, steps=steps)
