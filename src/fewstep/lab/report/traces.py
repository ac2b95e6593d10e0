"""Tokens of a few samples at every step of their trajectories, and how close each is to flipping; kept in traces.json.

B samples, L tokens, N steps, K latent positions of D dimensions.
"""

import json
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fewstep.cli.output import write_text
from fewstep.diagnostics.decoding import DecodeInParts, read_tokens
from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.trajectories import settling_steps
from fewstep.evaluation.adapters import HeadConditionals, all_real, decoder_of
from fewstep.evaluation.processes import Progress
from fewstep.evaluation.sweep import model_digest
from fewstep.lab.report.run import read_json
from fewstep.model import SavedModel, kind_of
from fewstep.readouts import TokenDraw
from fewstep.samplers import FlowSampler, default_sampling, incompatibility
from fewstep.shapes import example_generators, rand, randn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILE = "traces.json"
STEPS = (1, 2, 4, 8, 16)
ROWS_AT_ONCE = 32
"""Latents whose logits are held at a time: a bound on memory."""
MAX_TOKENS = 64
"""Tokens of a block that are followed: more would neither fit a screen nor a minute."""
DIGITS = 3
"""Significant digits of a distance."""

Mode = Literal["deterministic", "reinjection", "head"]
"""How a sample is drawn and read: the first two by the parallel readout, the third by the commitment head."""


@dataclass(frozen=True)
class SampleTrace:
    """One sample on one trajectory: ``tokens`` N rows of L indices into the vocabulary, ``distances`` like them (None:
    infinite), ``settled`` L steps in 1 .. N from which each token stays."""

    tokens: tuple[tuple[int, ...], ...]
    distances: tuple[tuple[float | None, ...], ...]
    settled: tuple[int, ...]


@dataclass(frozen=True)
class TracePath:
    """All samples in ``num_steps`` N Euler steps with re-injection of that strength, drawn and read by ``mode``.

    ``times`` N + 1 from 0 to 1: step k starts at ``times[k - 1]``, where its estimate is computed.
    """

    mode: Mode
    num_steps: int
    reinjection: float
    times: tuple[float, ...] = ()
    samples: tuple[SampleTrace, ...] = ()


@dataclass(frozen=True)
class Traces:
    """What :func:`collect_traces` follows: the first ``num_tokens`` L of ``block_size``.

    ``vocabulary`` holds the text of each token that occurs, ``token_ids`` its number in the tokenizer; ``model`` is the
    digest of the model.
    """

    model: str
    seed: int
    num_samples: int
    num_tokens: int
    block_size: int
    vocabulary: tuple[str, ...]
    token_ids: tuple[int, ...]
    paths: tuple[TracePath, ...]


def traces_of_run(
    run: Path, num_samples: int, device: torch.device | str = "cpu", progress: Progress = lambda *_: None
) -> Traces | None:
    """The traces of ``run``/model, from ``run``/traces.json where that holds ``num_samples`` of this model; else they
    are collected, and the file is written.

    Without a model the file is taken as it is. None if both are missing, or the model does not generate text. Raises
    ``UserError`` for a broken file or model.
    """
    file = run / FILE
    kept = read_json(Traces, file) if file.exists() else None
    if not (run / "model").exists():
        return kept
    if kind_of(run / "model") != "text":
        return None
    model = SavedModel.from_pretrained(run / "model", kind="text").to(device)
    if any(part is None for part in (model.autoencoder, model.denoiser, model.readout)):
        return None
    asked = (model_digest(model), num_samples, planned_paths(model))
    if kept is None or asked != (kept.model, kept.num_samples, [replace(p, times=(), samples=()) for p in kept.paths]):
        kept = collect_traces(model, num_samples, progress=progress)
        write_text(file, json.dumps(asdict(kept), ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n")
    return kept


def planned_paths(model: SavedModel) -> list[TracePath]:
    """Every mode with every number of steps that the model allows, without samples.

    A model that was trained for a number of steps has only that one. The head reads the latents of the model's default
    sampling (:func:`fewstep.samplers.default_sampling`), deterministic ones where the model allows them.
    """
    identity = model.identity
    counts = STEPS if identity.trained_nfe is None else (identity.trained_nfe,)
    paths = [*(TracePath("deterministic", n, 0.0) for n in counts), *(TracePath("reinjection", n, 1.0) for n in counts)]
    if model.head is not None:
        paths += [TracePath("head", n, default_sampling(identity, n).reinjection) for n in counts]
    return [path for path in paths if incompatibility(identity, _sampler(model, path), path.num_steps) is None]


def _sampler(model: SavedModel, path: TracePath) -> FlowSampler:
    return FlowSampler(model.flow().path, grid=model.identity.default_grid(), reinjection=path.reinjection)


def collect_traces(model: SavedModel, num_samples: int, seed: int = 0, progress: Progress = lambda *_: None) -> Traces:
    """Follow samples on every planned path, all from the same noise.

    At step k the tokens are read from the estimate x1_hat of that step, at the last from x_1, so that the last row is
    what :meth:`fewstep.pipeline.TextGenerator.generate` writes for this ``seed``. The head reads every step blurred by
    the same noise and with the same uniform numbers, so that only the latent moves.

    A distance is that to the nearest flip of the likeliest token to first order, m / |grad m|
    (:func:`fewstep.diagnostics.margins`), in rms of data latents, which are whitened to 1; of the head it is the
    likeliest token given the tokens that it drew before.
    """
    num_tokens = min(MAX_TOKENS, model.identity.block_size)
    plans = planned_paths(model)
    followed = []
    for done, path in enumerate(plans):
        progress(done, len(plans), f"{path.mode}, {path.num_steps} steps")
        followed.append(_follow(model, path, num_samples, num_tokens, seed))
    progress(len(plans), len(plans), "done")
    used = torch.cat([ids.flatten() for _, ids, _ in followed]).unique()
    paths = tuple(_with_samples(path, *part, used) for path, part in zip(plans, followed, strict=True))
    texts = tuple(token_text(model.tokenizer, token) for token in used.tolist())
    sizes = (num_samples, num_tokens, model.identity.block_size)
    return Traces(model_digest(model), seed, *sizes, texts, tuple(used.tolist()), paths)


def _follow(
    model: SavedModel, path: TracePath, num_samples: int, num_tokens: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Times (N + 1,), tokens and distances (N, B, L)."""
    flow, sources = model.flow(), example_generators(seed, 0, num_samples)
    x_0 = randn((num_samples, *model.latent_shape()), next(flow.parameters()), sources)
    trajectory = _sampler(model, path).sample(
        flow, x_0, num_steps=path.num_steps, mask=all_real(x_0), generator=sources
    )
    clean = torch.stack([*trajectory.predictions[:-1], trajectory.x_1])
    if path.mode == "head":  # reads as its own ``generate`` does: noise and uniform numbers in that order
        head, level = model.commitment_head(), model.commitment_head().trust_level
        if level > 0:
            clean = clean + level * randn(tuple(x_0.shape), clean, sources)
        u = rand((num_samples, x_0.shape[1] * head.network.stride), clean, sources).repeat(len(clean), 1)
    z = clean.flatten(0, 1)
    if path.mode == "head":
        ids = head.read(z, all_real(z), u, torch.full((len(z),), level, device=z.device), TokenDraw()).ids
        decode = DecodeInParts(HeadConditionals(head, level).logits, ROWS_AT_ONCE, (ids,))
    else:
        decode = DecodeInParts(decoder_of(model.reader()), ROWS_AT_ONCE)
        ids = read_tokens(decode, z)
    distances = margins(decode, z, torch.arange(num_tokens).expand(len(z), -1)).distance
    shape = (path.num_steps, num_samples, num_tokens)
    return trajectory.times.cpu(), ids[:, :num_tokens].reshape(shape).cpu(), distances.reshape(shape).cpu()


def _with_samples(path: TracePath, times: Tensor, ids: Tensor, distances: Tensor, used: Tensor) -> TracePath:
    tokens, settled = torch.searchsorted(used, ids.contiguous()), settling_steps(list(ids))
    samples = tuple(
        SampleTrace(
            tuple(map(tuple, tokens[:, b].tolist())),
            tuple(tuple(map(_rounded, row)) for row in distances[:, b].tolist()),
            tuple(settled[b].tolist()),
        )
        for b in range(tokens.shape[1])
    )
    return replace(path, times=tuple(round(float(time), 4) for time in times), samples=samples)


def _rounded(distance: float) -> float | None:
    return float(f"{distance:.{DIGITS}g}") if isfinite(distance) else None


def token_text(tokenizer: "PreTrainedTokenizerFast", token: int) -> str:
    """The text of ``token`` after another token, with the space before it; special tokens by their names.

    A part of a character is U+FFFD. Tokenizers drop the space of a text's first word, or mark a continued word, at the
    first token: therefore the second of two is taken.
    """

    def text(*ids: int) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return text(token, token)[len(text(token)) :] or text(token)
