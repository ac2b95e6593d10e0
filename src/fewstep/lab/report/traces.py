"""What the tokens of a sample are at every step of its trajectory, and how close each is to becoming another.

B samples, L tokens, N steps, K latent positions of D dimensions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, norms
from fewstep.diagnostics.trajectories import settling_steps
from fewstep.errors import UserError
from fewstep.evaluation.adapters import HeadConditionals, decoder_of
from fewstep.evaluation.sweep import model_digest
from fewstep.lab.report.trace_plan import PlannedPath, Way, planned_paths
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, rand, randn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NUM_SAMPLES = 6
STEPS = (1, 2, 4, 8, 16)
MAX_TOKENS = 64
"""Tokens of a block that are shown: more would neither fit a screen nor a minute."""

DIGITS = 3
"""Significant digits of a distance."""

NUMBERS_AT_ONCE = 2**23
"""Logits that are held at a time, for which a graph is kept: a bound on memory."""

Progress = Callable[[int, int, str], object]
"""Called as (done, of how many, label)."""


@dataclass(frozen=True)
class SampleTrace:
    """One sample along one trajectory: ``tokens`` N rows of L indices into the vocabulary of :class:`Traces`,
    ``distances`` like them (None: infinite), ``settled`` L steps in 1 .. N from which each token stays."""

    tokens: tuple[tuple[int, ...], ...]
    distances: tuple[tuple[float | None, ...], ...]
    settled: tuple[int, ...]


@dataclass(frozen=True)
class TracePath:
    """All samples along the trajectories of one way with ``num_steps`` N steps.

    ``times`` N + 1 from 0 to 1: step k starts at ``times[k - 1]``, where its estimate is made, and ends at
    ``times[k]``. ``reinjection`` is the strength with which the latents were made.
    """

    way: Way
    num_steps: int
    reinjection: float
    times: tuple[float, ...]
    samples: tuple[SampleTrace, ...]

    @property
    def plan(self) -> PlannedPath:
        """How it was made."""
        return PlannedPath(self.way, self.num_steps, self.reinjection)


@dataclass(frozen=True)
class Traces:
    """Tokens and boundary distances at every step, for several ways and numbers of steps (see :func:`collect_traces`).

    ``num_tokens`` are the tokens L that are traced, the first of ``block_size``. ``vocabulary`` holds the text of
    each token that occurs and ``token_ids`` its number in the tokenizer; ``model`` is
    :func:`~fewstep.evaluation.sweep.model_digest`. This project's definition.
    """

    model: str
    seed: int
    num_samples: int
    num_tokens: int
    block_size: int
    vocabulary: tuple[str, ...]
    token_ids: tuple[int, ...]
    paths: tuple[TracePath, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Traces":
        """The inverse, of plain values or of what JSON made of them. Raises ``KeyError``, ``TypeError`` or
        ``ValueError``, whose text says what is wrong, for other values."""
        if not isinstance(values, dict):
            raise TypeError(f"expected an object, not {type(values).__name__}")
        vocabulary, ids = tuple(values["vocabulary"]), tuple(values["token_ids"])
        if not all(isinstance(text, str) for text in vocabulary) or len(ids) != len(vocabulary):
            raise ValueError("vocabulary is no list of texts with one of token_ids each")
        num_samples, num_tokens = int(values["num_samples"]), int(values["num_tokens"])
        paths = tuple(_path(path, num_samples, num_tokens, len(vocabulary)) for path in values["paths"])
        if not paths or num_samples < 1 or num_tokens < 1:
            raise ValueError(f"{len(paths)} paths of {num_samples} samples of {num_tokens} tokens")
        block_size = int(values["block_size"])
        return cls(
            str(values["model"]), int(values["seed"]), num_samples, num_tokens, block_size, vocabulary, ids, paths
        )


@torch.no_grad()
def collect_traces(
    generator: TextGenerator,
    *,
    num_samples: int = NUM_SAMPLES,
    steps: Sequence[int] = STEPS,
    reinjection: float = 1.0,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Traces:
    """Follow ``num_samples`` samples in ``steps`` Euler steps: deterministic, re-injected, and read by the head.

    At step k the tokens are those read from the estimate x1_hat that the step makes, at the last from x_1, so that the
    last row is what :meth:`TextGenerator.generate` writes for this ``seed``. All ways and numbers of steps start from
    the same noise. ``reinjection`` is the strength of the second way. The third is there where the model has a
    commitment head: it reads the deterministic latents (or the model's own, where it cannot go that way), at every step
    blurred by the same noise and with the same uniform numbers, so that only the latent moves. What the model was not
    trained for is left out (:func:`~fewstep.lab.report.trace_plan.planned_paths`). Of a block longer than
    ``max_tokens`` its first tokens are traced.

    A distance is that to the nearest flip of the likeliest token, to first order: m / |grad m|, in rms of data
    latents, which are whitened to 1. Of the head it is the likeliest token given the tokens that it drew before;
    what it drew there may be another.

    Costs, a way and a number of steps, N rows a sample with a forward and L backward passes of the readout each; of
    the quickstart's model 6 samples take less than a minute on one core. This project's definition. Raises
    ``UserError`` for numbers out of range and a model without autoencoder, denoiser or readout. ``progress`` hears of
    each way and number of steps.
    """
    bundle = generator.model
    plans = planned_paths(bundle, steps, reinjection)
    for name, value in (("num_samples", num_samples), ("max_tokens", max_tokens)):
        if value < 1:
            raise UserError(f"{name} is {value}: expected a whole number of at least 1")
    block_size = bundle.identity.block_size
    num_tokens = min(max_tokens, block_size)
    found = []
    for done, plan in enumerate(plans):
        if progress is not None:
            progress(done, len(plans), f"{plan.way}, {plan.num_steps} steps")
        found.append(_follow(generator, plan, num_samples, num_tokens, seed))
    if progress is not None:
        progress(len(plans), len(plans), "done")
    used = torch.cat([one.ids.flatten() for one in found]).unique()
    texts = tuple(token_text(bundle.tokenizer, token) for token in used.tolist())
    paths = tuple(one.path(used) for one in found)
    model, ids = model_digest(bundle), tuple(used.tolist())
    return Traces(model, seed, num_samples, num_tokens, block_size, texts, ids, paths)


@dataclass(frozen=True)
class _Followed:
    """``ids`` and ``distances`` (N, B, L) on the CPU, ``times`` N + 1."""

    plan: PlannedPath
    times: tuple[float, ...]
    ids: Tensor
    distances: Tensor

    def path(self, used: Tensor) -> TracePath:
        """With tokens as indices into ``used``, which holds them all in rising order."""
        tokens, settled = torch.searchsorted(used, self.ids.contiguous()), settling_steps(list(self.ids))
        samples = tuple(
            SampleTrace(
                _rows(tokens[:, b].tolist()), _rounded(self.distances[:, b].tolist()), tuple(settled[b].tolist())
            )
            for b in range(tokens.shape[1])
        )
        return TracePath(self.plan.way, self.plan.num_steps, self.plan.reinjection, self.times, samples)


def _follow(generator: TextGenerator, plan: PlannedPath, num_samples: int, num_tokens: int, seed: int) -> _Followed:
    bundle, flow = generator.model, generator.model.flow()
    like = next(flow.parameters())
    sources = example_generators(seed, 0, num_samples)
    x_0 = randn((num_samples, *bundle.latent_shape()), like, sources)
    mask = torch.ones(x_0.shape[:2], dtype=torch.bool, device=x_0.device)
    sampler = FlowSampler(flow.path, grid=generator.model.identity.default_grid(), reinjection=plan.reinjection)
    made = sampler.sample(flow, x_0, num_steps=plan.num_steps, mask=mask, generator=sources)
    clean = torch.stack([*made.predictions[:-1], made.x_1])
    read = _head_reads if plan.way == "commitment" else _readout_reads
    rows_at_once = rows_within_memory(bundle.identity.block_size, bundle.reader().config["vocab_size"])
    z, ids, decode_of = read(bundle, clean, sources, rows_at_once)
    distances = block_distances(decode_of, z, num_tokens, rows_at_once)
    times = tuple(round(float(t), 4) for t in made.times)
    shape = (plan.num_steps, num_samples, num_tokens)
    return _Followed(plan, times, ids[:, :num_tokens].reshape(shape).cpu(), distances.reshape(shape).cpu())


Read = tuple[Tensor, Tensor, Callable[[slice], Decode]]
"""Latents (N B, K, D), the tokens (N B, L) read there, and for a slice of these rows what gives their logits."""


def _readout_reads(bundle: SavedModel, clean: Tensor, sources: list[torch.Generator], rows_at_once: int) -> Read:
    decode, z = decoder_of(bundle.reader()), clean.flatten(0, 1)
    ids = torch.cat([decode(z[rows]).argmax(-1) for rows in row_slices(len(z), rows_at_once)])
    return z, ids, lambda rows: decode


def _head_reads(bundle: SavedModel, clean: Tensor, sources: list[torch.Generator], rows_at_once: int) -> Read:
    """As the head's own ``generate`` reads, noise and uniform numbers drawn in its order, for all steps the same."""
    head, level = bundle.commitment_head(), bundle.commitment_head().trust_level
    blurred = clean + level * randn(tuple(clean.shape[1:]), clean, sources) if level > 0 else clean
    u = rand((clean.shape[1], clean.shape[2] * head.network.stride), clean, sources)
    z, u = blurred.flatten(0, 1), u.repeat(len(clean), 1)
    mask = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
    levels = torch.full((len(z),), level, device=z.device)
    ids = head.read(z, mask, u, levels, temperature=1.0, top_p=1.0).ids
    conditionals = HeadConditionals(head, level)
    return z, ids, lambda rows: conditionals.given(ids[rows].clone())


def _rows(rows: Iterable[Iterable[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in rows)


def _rounded(rows: Sequence[Sequence[float]]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(float(f"{value:.{DIGITS}g}") if isfinite(value) else None for value in row) for row in rows)


def _path(values: dict[str, Any], num_samples: int, num_tokens: int, vocab_size: int) -> TracePath:
    way, num_steps = values["way"], int(values["num_steps"])
    times = tuple(float(time) for time in values["times"])
    samples = tuple(_sample(sample, num_steps, num_tokens, vocab_size) for sample in values["samples"])
    if way not in get_args(Way):
        raise ValueError(f"way is {way!r}, expected {', '.join(get_args(Way))}")
    if len(times) != num_steps + 1 or len(samples) != num_samples:
        raise ValueError(f"{len(times)} times and {len(samples)} samples in a path of {num_steps} steps")
    return TracePath(way, num_steps, float(values["reinjection"]), times, samples)


def _sample(values: dict[str, Any], num_steps: int, num_tokens: int, vocab_size: int) -> SampleTrace:
    tokens, distances, settled = _rows(values["tokens"]), _rows(values["distances"]), tuple(values["settled"])
    lengths = [num_tokens] * num_steps
    if [len(row) for row in tokens] != lengths or not _numbered(tokens, 0, vocab_size - 1):
        raise ValueError(f"tokens are not {num_steps} rows of {num_tokens} numbers under {vocab_size}")
    if [len(row) for row in distances] != lengths or not all(map(_is_distance, chain(*distances))):
        raise ValueError(f"distances are not {num_steps} rows of {num_tokens} numbers or nulls")
    if len(settled) != num_tokens or not _numbered((settled,), 1, num_steps):
        raise ValueError(f"settled are not {num_tokens} numbers from 1 to {num_steps}")
    return SampleTrace(tokens, distances, settled)


def _is_distance(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and isfinite(value) and value >= 0)


def _numbered(rows: Sequence[Sequence[int]], low: int, high: int) -> bool:
    return all(type(number) is int and low <= number <= high for row in rows for number in row)


def token_text(tokenizer: "PreTrainedTokenizerFast", token: int) -> str:
    """The text of ``token`` after another token, with the space before it; special tokens by their names.

    A part of a character shows U+FFFD. Tokenizers drop the space of a text's first word, or mark a continued word, at
    the first token: therefore the second of two is taken.
    """
    alone, twice = (
        str(tokenizer.decode([token] * count, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for count in (1, 2)
    )
    return twice[len(alone) :] or alone


def block_distances(
    decode_of: Callable[[slice], Decode], z: Tensor, num_tokens: int, rows_at_once: int | None = None
) -> Tensor:
    """m / |grad m| (R, P) float64 at the first P = ``num_tokens`` tokens of the latents ``z`` (R, K, D), in the unit of
    their numbers.

    m is the lead of the likeliest token over the second, as in :func:`fewstep.diagnostics.margins`, whose distances
    these are: there a position costs an evaluation, here all positions of a row share one, with a backward pass each.
    ``decode_of`` gives, for a slice of the rows, what turns their latents into logits (r, L, V); ``rows_at_once``
    bounds the slices. Infinite where the gradient is zero. After arXiv:2606.30705.
    """
    with torch.inference_mode(False), torch.enable_grad():
        parts = row_slices(len(z), rows_at_once or len(z))
        return torch.cat([_distances(decode_of(rows), z[rows].detach().clone(), num_tokens) for rows in parts])


def rows_within_memory(num_tokens: int, vocab_size: int) -> int:
    """How many rows of logits (L, V) are held at a time, at least 1."""
    return max(1, NUMBERS_AT_ONCE // (num_tokens * vocab_size))


def row_slices(num_rows: int, at_once: int) -> list[slice]:
    """The rows 0 .. ``num_rows`` - 1 in slices of ``at_once``."""
    return [slice(first, first + at_once) for first in range(0, num_rows, at_once)]


def _distances(decode: Decode, z: Tensor, num_tokens: int) -> Tensor:
    logits = decode(z.requires_grad_())[:, :num_tokens]
    if logits.shape[-1] == 1:  # there is no other token to flip to
        return torch.full(logits.shape[:2], torch.inf, dtype=torch.float64, device=z.device)
    first, second = logits.topk(2, dim=-1).values.double().unbind(-1)
    lead = first - second
    slope = torch.stack([_slope(column, z) for column in lead.unbind(1)], 1)
    lead = lead.detach()
    return torch.where((slope > 0) & slope.isfinite() & lead.isfinite(), lead / slope, torch.inf)


def _slope(lead: Tensor, z: Tensor) -> Tensor:
    """|grad| (R,) of ``lead`` (R,), row by row."""
    if not lead.requires_grad:
        return torch.zeros_like(lead)
    (gradient,) = torch.autograd.grad(lead.sum(), z, retain_graph=True, allow_unused=True)
    return torch.zeros_like(lead) if gradient is None else norms(gradient)
