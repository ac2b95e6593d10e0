"""The traces of a run, kept beside its model and re-created when the model changes."""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from fewstep.errors import UserError, first_line
from fewstep.evaluation.sweep import model_digest
from fewstep.lab.report.trace_plan import PlannedPath, planned_paths
from fewstep.lab.report.traces import MAX_TOKENS, NUM_SAMPLES, STEPS, Progress, Traces, collect_traces
from fewstep.model import kind_of
from fewstep.pipeline import TextGenerator

FILE = "traces.json"
PARTS = ("autoencoder", "denoiser", "readout")


def traces_of_run(
    run: str | Path,
    *,
    num_samples: int = NUM_SAMPLES,
    steps: Sequence[int] = STEPS,
    reinjection: float = 1.0,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Traces | None:
    """The traces of the model in ``run``/model, from ``run``/traces.json where that holds what is asked for.

    They are collected, and the file written or replaced, where it is missing, was made of another model
    (:func:`~fewstep.evaluation.sweep.model_digest`) or with other numbers; for these see
    :func:`~fewstep.lab.report.traces.collect_traces`. Without a model the file is taken as it is. None where there is
    neither, or the model is one of images or lacks autoencoder, denoiser or readout. Raises ``UserError`` for a broken
    file or model, and where the file cannot be written.
    """
    run = Path(run).expanduser()
    file = run / FILE
    kept = read_traces(file) if file.exists() else None
    if not (run / "model").exists():
        return kept
    if kind_of(run / "model") != "text":
        return None
    generator = TextGenerator.from_pretrained(run / "model", device)
    bundle = generator.model
    if any(getattr(bundle, part) is None for part in PARTS):
        return None
    plans = planned_paths(bundle, steps, reinjection)
    asked = (model_digest(bundle), seed, num_samples, min(max_tokens, bundle.identity.block_size), plans)
    if kept is not None and asked == _made_of(kept):
        return kept
    made = collect_traces(
        generator,
        num_samples=num_samples,
        steps=steps,
        reinjection=reinjection,
        max_tokens=max_tokens,
        seed=seed,
        progress=progress,
    )
    write_traces(made, file)
    return made


def _made_of(traces: Traces) -> tuple[str, int, int, int, tuple[PlannedPath, ...]]:
    plans = tuple(path.plan for path in traces.paths)
    return traces.model, traces.seed, traces.num_samples, traces.num_tokens, plans


def read_traces(file: Path) -> Traces:
    """What :func:`write_traces` wrote. Raises ``UserError`` where it is broken, in one line."""
    try:
        return Traces.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except KeyError as error:
        raise UserError(f"{file} has no {error}: delete it, and it is re-created") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} holds no traces ({first_line(error)}): delete it, and it is re-created") from None


def write_traces(traces: Traces, file: Path) -> None:
    """Write ``traces`` as compact JSON, whole or not at all; what stood there is replaced. Raises ``UserError``."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    text = json.dumps(traces.to_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        draft.write_text(text + "\n", encoding="utf-8")
        os.replace(draft, file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
