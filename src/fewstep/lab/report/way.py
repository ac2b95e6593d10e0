"""The way of the data through a run's models, station by station, with the figures of each; and what made them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.evaluation.measurements import NOISE_LEVEL_RMS
from fewstep.lab.report.blocks import Table
from fewstep.lab.report.evidence import HEAD, PARALLEL, Evidence, judged_steps
from fewstep.lab.report.wording import estimate_text, figure, percent

NOTHING = "–"
DIGITS_OF_A_HASH = 12


@dataclass(frozen=True)
class Station:
    """A station called ``title``, what it does, and ``facts``: a name with a value of each run."""

    title: str
    does: str
    facts: tuple[tuple[str, tuple[str, ...]], ...]


def stations(evidences: Sequence[Evidence]) -> tuple[Station, ...]:
    """Those of which some run tells something."""
    kinds = {one.run.kind for one in evidences}
    data = "Data" if len(kinds) > 1 else "Text" if kinds == {"text"} else "Images"
    made = [
        Station(data, "is cut into blocks", _facts(evidences, _text)),
        Station("Autoencoder", "makes latents of it, whitened to unit variance", _facts(evidences, _autoencoder)),
        Station("Flow", "learns the way from noise to latents", _facts(evidences, _flow)),
        Station("Sampler", "goes that way in few steps", _facts(evidences, _sampler)),
        Station("Readout", "reads all tokens at once, each from the latents alone", _facts(evidences, _readout)),
        Station("Commitment head", "reads token by token, each after those before it", _facts(evidences, _head)),
    ]
    return tuple(one for one in made if one.facts)


def provenance(evidences: Sequence[Evidence]) -> Table:
    """What made the figures: versions, seeds, settings, hashes."""
    facts = _facts(evidences, _provenance)
    heading = ("", *(one.run.name for one in evidences))
    rows = tuple((name, *values) for name, values in facts)
    return Table("table-provenance", "What the figures were made with.", heading, rows)


def _facts(evidences: Sequence[Evidence], tell: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    told: list[dict[str, str | None]] = [tell(one) for one in evidences]
    names = list(dict.fromkeys(name for facts in told for name in facts))
    lines = ((name, tuple(facts.get(name) or NOTHING for facts in told)) for name in names)
    return tuple((name, values) for name, values in lines if any(value != NOTHING for value in values))


def _identity(evidence: Evidence) -> dict[str, Any]:
    return {} if evidence.run.manifest is None else evidence.run.manifest.identity


def _config(evidence: Evidence, part: str) -> dict[str, Any]:
    spec = None if evidence.run.manifest is None else evidence.run.manifest.parts.get(part)
    return {} if spec is None else spec.init_args


def _class(evidence: Evidence, part: str) -> str | None:
    spec = None if evidence.run.manifest is None else evidence.run.manifest.parts.get(part)
    return None if spec is None else spec.class_path.rpartition(".")[2]


def _size(evidence: Evidence, part: str) -> str | None:
    count = (evidence.run.sizes or {}).get(part)
    return None if count is None else f"{count:,}"


def _loss(evidence: Evidence, stage: str) -> str | None:
    last = next((one.last for one in evidence.run.stages if one.stage == stage), {})
    return figure(last["val/loss"]) if "val/loss" in last else None


def _shown(value: Any) -> str | None:
    return None if value is None else str(value)


def _text(evidence: Evidence) -> dict[str, str | None]:
    size = evidence.run.block_size
    return {
        "source": _shown(_identity(evidence).get("source") or _identity(evidence).get("data")),
        "tokens in a block": _shown(size),
        "vocabulary": _shown(_config(evidence, "readout").get("vocab_size")),
    }


def _autoencoder(evidence: Evidence) -> dict[str, str | None]:
    config, size = _config(evidence, "autoencoder"), evidence.run.block_size
    dims, stride = config.get("latent_dim"), config.get("stride")
    shape = f"{-(-size // stride)} x {dims}" if size and isinstance(stride, int) and stride > 0 else None
    n = next((one.n for one in evidence.run.diagnoses if one.n is not None), None)
    accuracy, noisy = evidence.token_accuracy(), evidence.value(f"noise_accuracy_at_{NOISE_LEVEL_RMS:g}")
    last = next((one.last for one in evidence.run.stages if "val/psnr_db" in one.last), {})
    return {
        "network": _class(evidence, "autoencoder"),
        "numbers stored": _size(evidence, "autoencoder"),
        "positions K x dimensions D": shape,
        "numbers in a latent, n": _shown(n),
        "token accuracy": None if accuracy is None else percent(accuracy),
        f"at {NOISE_LEVEL_RMS:g} rms of noise": None if noisy is None else percent(noisy),
        "held-out PSNR (dB)": figure(last["val/psnr_db"]) if last else None,
    }


def _flow(evidence: Evidence) -> dict[str, str | None]:
    identity, peak = _identity(evidence), evidence.estimate("stiffness_peak")
    return {
        "network": _class(evidence, "denoiser"),
        "numbers stored": _size(evidence, "denoiser"),
        "objective": _shown(identity.get("objective")),
        "path, prediction": ", ".join(str(identity[key]) for key in ("path", "prediction") if identity.get(key))
        or None,
        "held-out loss": _loss(evidence, "flow"),
        "stiffness, peak": None if peak is None else estimate_text(peak),
    }


def _sampler(evidence: Evidence) -> dict[str, str | None]:
    late = evidence.estimate("late_flip_rate")
    told = {"late flips (share)": None if late is None else estimate_text(late)}
    return told | _perplexities(evidence, PARALLEL)


def _readout(evidence: Evidence) -> dict[str, str | None]:
    share = (
        evidence.estimate("dabi_fraction") if evidence.run.kind == "text" else evidence.estimate("dabi_worst_fraction")
    )
    data, made = evidence.estimate("boundary_distance_p50"), evidence.estimate("boundary_distance_generated_p50")
    return {
        "network": _class(evidence, "readout"),
        "numbers stored": _size(evidence, "readout"),
        "sensitivity in one direction (DABI / n)": None if share is None else estimate_text(share),
        "median distance to a flip, data (rms)": None if data is None else estimate_text(data),
        "generated (rms)": None if made is None else estimate_text(made),
    }


def _head(evidence: Evidence) -> dict[str, str | None]:
    gain, cci = evidence.estimate("listening_gain_nats"), evidence.estimate("cci")
    if not (_class(evidence, "head") or gain or cci or evidence.flows(HEAD)):
        return {}
    told = {
        "network": _class(evidence, "head"),
        "numbers stored": _size(evidence, "head"),
        "reads latents blurred by (rms)": _shown(_identity(evidence).get("trust_level")),
        "gain from its latent (nats a token)": None if gain is None else estimate_text(gain),
        "CCI": None if cci is None else estimate_text(cci),
        "held-out loss": _loss(evidence, "head"),
    }
    return told | _perplexities(evidence, HEAD)


def _perplexities(evidence: Evidence, readout: str) -> dict[str, str | None]:
    flows = evidence.flows(readout)
    strengths = sorted({one.reinjection for one in flows})
    ends = {strengths[0], strengths[-1]} if strengths else set()
    steps = judged_steps(one.num_steps for one in flows if one.num_steps is not None)
    return {
        f"perplexity, K = {one.num_steps}, gamma {one.reinjection:g}": f"{figure(one.perplexity)} "
        f"(entropy {one.entropy_nats:.2f})"
        for one in flows
        if one.num_steps in steps and one.reinjection in ends
    }


def _provenance(evidence: Evidence) -> dict[str, str | None]:
    run, identity = evidence.run, _identity(evidence)
    told: dict[str, str | None] = {"read from": run.source, "kind": run.kind}
    versions = identity.get("versions")
    if isinstance(versions, dict):
        told["trained with"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    for label, key in (("path", "path"), ("prediction", "prediction"), ("objective", "objective")):
        told[label] = _shown(identity.get(key))
    told["trained for steps"] = _shown(identity.get("trained_nfe"))
    fingerprint = identity.get("tokenizer_fingerprint")
    told["tokenizer"] = None if fingerprint is None else str(fingerprint)[:DIGITS_OF_A_HASH]
    if run.rows:
        first = run.rows[0]
        told["model"] = first.model
        told["scoring protocol"] = first.protocol_hash
        told["sampling seeds"] = ", ".join(map(str, first.seeds))
        told["scored with"] = ", ".join(f"{name} {value}" for name, value in first.protocol.get("versions", {}).items())
    if run.table is not None:
        told["quickstart's table"] = f"seed {run.table.seed}, scorer {run.table.scorer}"
    for one in run.diagnoses:
        parts = [f"{one.num_examples} examples" if one.num_examples else "", _positions(one.num_positions)]
        parts.append("" if one.seed is None else f"seed {one.seed}")
        told[f"figures: {one.origin}"] = ", ".join(filter(None, parts)) or "yes"
        if one.notes:
            told["notes of the diagnosis"] = " ".join(one.notes)
        if one.protocol is not None:
            told["protocol of the diagnosis"] = json.dumps(one.protocol, ensure_ascii=False, sort_keys=True)
    return told


def _positions(count: int | None) -> str:
    return "" if count is None else f"{count} positions in each"
