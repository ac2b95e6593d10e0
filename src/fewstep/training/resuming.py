"""What a checkpoint records of its run, and its comparison with the run that resumes from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer
from torch import Tensor

from fewstep.errors import UserError
from fewstep.registry import validated
from fewstep.shapes import tensors_digest

BASE = "model.autoencoder"
"""The option of a stage that names the frozen parts of earlier stages."""
BATCHES, PROCESSES = "trainer.accumulate_grad_batches x processes", "processes of a stream"
"""What stands for the settings of accumulation, devices and nodes: the batches of an optimizer step on all ranks."""
PER_START = (
    *("run_dir", "overwrite", "ckpt_path", "weights_only"),
    *("trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes"),
)
"""Settings of one start of a run."""
PLACES = (
    *("data.source", "data.tokenizer", "data.cache_dir"),
    *("model.autoencoder", "model.teacher", "model.initialise_from", "model.language_model"),
    "model.allow",
)
"""Names of files and folders: their content is compared by its fingerprint."""
DECIDES_ROWS_AND_MODEL = ("data.", "model.", "seed_everything", BATCHES, PROCESSES)
MAY_CHANGE = ("model.optimizer.", "data.num_workers", "data.num_validation_")
"""Exceptions to the line above; whatever else is not in it may change too."""
ADVICE = {
    "data.source": "give the text as it was, or start a new run",
    "data.tokenizer": "leave --data.tokenizer out, the checkpoint has its own",
    "model.autoencoder": "give the checkpoint itself as --model.autoencoder, which holds what it was trained on",
}


@dataclass(frozen=True)
class RunRecord:
    """What decides a run: ``settings`` by option, and ``fingerprints`` (hex digits) of what options name."""

    settings: dict[str, Any]
    fingerprints: dict[str, str]


def recorded_run(entry: Mapping[str, Any], source: str) -> RunRecord:
    """The record in a checkpoint's entry; of a checkpoint without one, the fingerprints that its content gives."""
    if "run" in entry:
        return validated(RunRecord, entry["run"], source)
    fingerprints = {"data.tokenizer": entry["manifest"]["identity"].get("tokenizer_fingerprint", "")}
    if entry["frozen"]:
        fingerprints[BASE] = weights_digest(entry["frozen"])
    return RunRecord({}, {name: value for name, value in fingerprints.items() if value})


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the names of their options, such as ``model.optimizer.learning_rate``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        place = prefix if name == "init_args" else f"{prefix}{name}."
        flat |= flatten(value, place) if isinstance(value, Mapping) else {place.removesuffix("."): value}
    return flat


def weights_digest(parts: Mapping[str, Mapping[str, Tensor]]) -> str:
    """SHA-256 of tensors by part and name."""
    flat = {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
    return tensors_digest(flat)


def compare(saved: RunRecord, now: RunRecord, checkpoint: Path | str) -> list[str]:
    """The settings of a resumed run that differ from its checkpoint's and are applied, a line each.

    Raises ``UserError``, a line for each difference that changes what the run means: other rows, another model.
    """
    refused = []
    changed = {
        name: (value, now.settings[name])
        for name, value in saved.settings.items()
        if name in now.settings and value != now.settings[name] and name not in (*PER_START, *PLACES)
    }
    for name, (before, after) in changed.items():
        if name.startswith(DECIDES_ROWS_AND_MODEL) and not name.startswith(MAY_CHANGE):
            advice = "give the same" if name in (BATCHES, PROCESSES) else f"give --{name}={_shown(before)}"
            refused.append(f"{name} is {_shown(after)}, in the checkpoint {_shown(before)}: {advice}")
    names = [name for name in saved.fingerprints | now.fingerprints if _differ(saved, now, name)]
    if not saved.settings or not now.fingerprints:  # written by an earlier version; nothing is loaded yet
        names = [name for name in names if name in saved.fingerprints and name in now.fingerprints]
    if refused or "data.tokenizer" in names:  # then the blocks differ for that reason
        names = [name for name in names if name != "data.source"]
    for name in names:
        before, after = (record.fingerprints.get(name, "nothing")[:12] for record in (saved, now))
        advice = ADVICE.get(name, "give the model that the run began with")
        refused.append(f"{name} names other content than in the checkpoint ({after}, then {before}): {advice}")
    if refused:
        remedy = "or choose another --run_dir to start a new run"
        raise UserError(*(f"cannot resume from {checkpoint}: {line}, {remedy}" for line in refused))
    return [f"{name} {_shown(before)} -> {_shown(after)}" for name, (before, after) in changed.items()]


def _differ(saved: RunRecord, now: RunRecord, name: str) -> bool:
    return saved.fingerprints.get(name) != now.fingerprints.get(name)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def keep_own_settings(callbacks: Iterable[Callback], states: dict[str, Any]) -> None:
    """Change the ``states`` of Lightning's callbacks in a checkpoint, so that they do not overrule this run's settings.

    ``max_time`` counts from each start, and EarlyStopping has the patience of this run.
    """
    for callback in callbacks:
        if isinstance(callback, Timer):
            states.pop(callback.state_key, None)
        elif isinstance(callback, EarlyStopping) and callback.state_key in states:
            states[callback.state_key]["patience"] = callback.patience
