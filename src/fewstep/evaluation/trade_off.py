"""Accuracy, depth and stiffness: what steps and re-injected noise buy (after arXiv:2606.30705).

N samples, K steps, gamma the strength of re-injection.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fewstep.diagnostics import (
    Cci,
    DiagnosticRow,
    Estimate,
    Picture,
    estimate_series,
    late_flip_rate,
    stiffness,
)
from fewstep.evaluation.adapters import HeadConditionals, cci_as_read, reading, sampled, velocity_of
from fewstep.evaluation.scoring import corpus_perplexity, perplexity_of_blocks, score_blocks
from fewstep.evaluation.subject import Subject
from fewstep.metrics import bootstrap_interval, unigram_entropy_nats
from fewstep.pipeline import check_sampler
from fewstep.samplers import EulerSolver, FlowSampler, misfit, own_steps
from fewstep.types import Trajectory

STEPS = (1, 2, 4, 8)
REINJECTIONS = (0.0, 1.0)
FEW = 8
"""Examples that stiffness and CCI look at, at most."""
NUM_ITERATIONS = 5
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class TradeOffRow:
    """One setting of the sampler.

    ``perplexity`` of the parallel readout's tokens under the run's language model and their unigram ``entropy_nats``;
    ``peak_stiffness`` over the states that the sampler passed; ``late_flip_rate``; ``cci`` of the commitment head on
    the latents it ended at, None without a head.
    """

    num_steps: int
    reinjection: float
    perplexity: Estimate
    entropy_nats: float
    peak_stiffness: Estimate
    late_flip_rate: Estimate
    cci: Estimate | None


@dataclass(frozen=True)
class TradeOff:
    """The table, one entry a setting. This project's definition, after arXiv:2606.30705."""

    name: str
    settings: tuple[TradeOffRow, ...]

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """Four lines a setting, their names ending in ``_K4_gamma1`` and the like."""
        found: list[DiagnosticRow] = []
        for one in self.settings:
            ending = f"K{one.num_steps}_gamma{one.reinjection:g}"
            note = f"entropy {one.entropy_nats:.2f} nats"
            found.append(DiagnosticRow(f"perplexity_{ending}", one.perplexity, note=note))
            found.append(DiagnosticRow(f"stiffness_peak_{ending}", one.peak_stiffness))
            found.append(DiagnosticRow(f"late_flip_rate_{ending}", one.late_flip_rate))
            if one.cci is not None:
                found.append(DiagnosticRow(f"cci_{ending}", one.cci))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture:
        """Perplexity over steps, one line a strength."""
        lines = []
        for gamma in sorted({one.reinjection for one in self.settings}):
            mine = [one for one in self.settings if one.reinjection == gamma]
            steps = [float(one.num_steps) for one in mine]
            lines.append(estimate_series(f"gamma = {gamma:g}", steps, [one.perplexity for one in mine]))
        title = "What steps and re-injected noise buy"
        return Picture(title, "steps K", "perplexity", tuple(lines), log_x=True, log_y=True)


def trade_off(
    subject: Subject, *, steps: Sequence[int] | None = None, reinjections: Sequence[float] = REINJECTIONS
) -> TradeOff:
    """Sample from the same noise by every number of ``steps`` and strength of ``reinjections``, and measure each.

    ``steps`` None: 1, 2, 4 and 8, or the one number that the model was trained for; ``UserError`` for another.
    Strengths that do not fit the model are left out.
    """
    identity, grid = subject.generator.bundle.identity, subject.generator.default_grid()
    path = subject.generator.bundle.flow().path
    if steps is None:
        steps = tuple(dict.fromkeys(own_steps(identity, wanted).num_steps for wanted in STEPS))
    for num_steps in steps:
        check_sampler(identity, num_steps, EulerSolver(), own_steps(identity, num_steps).reinjection)
    settings = [
        (num_steps, gamma)
        for gamma in reinjections
        for num_steps in steps
        if misfit(identity, FlowSampler(path, None, grid, gamma), num_steps) is None
    ]
    return TradeOff("trade_off", tuple(_measure(subject, num_steps, gamma) for num_steps, gamma in settings))


def _measure(subject: Subject, num_steps: int, gamma: float) -> TradeOffRow:
    path = sampled(subject, num_steps, gamma)
    name = f"trade_off_{num_steps}_{gamma:g}"
    ids = reading(subject)(path.x_1).cpu()
    return TradeOffRow(
        num_steps,
        gamma,
        _perplexity(subject, ids, name),
        unigram_entropy_nats(ids),
        _peak_stiffness(subject, path, name),
        late_flip_rate(path.predictions, reading(subject), generator=subject.noise(name)).rate,
        None if subject.generator.bundle.head is None else _cci(subject, path, name).cci,
    )


def _perplexity(subject: Subject, ids: torch.Tensor, name: str) -> Estimate:
    scores = score_blocks(subject.generator.bundle.scorer(), ids, torch.ones_like(ids, dtype=torch.bool)).stacked()
    interval = bootstrap_interval(scores, corpus_perplexity, NUM_RESAMPLES, subject.noise(name), batched=True)
    return Estimate(perplexity_of_blocks(scores), interval, len(ids))


def _peak_stiffness(subject: Subject, path: Trajectory, name: str) -> Estimate:
    """Over the states at which the sampler evaluated the model."""
    states = [(float(t), x_t[:FEW]) for t, x_t in zip(path.times[:-1], path.states[:-1], strict=True)]
    velocity = velocity_of(subject.generator.bundle.flow())
    return stiffness(velocity, states, num_iterations=NUM_ITERATIONS, generator=subject.noise(name)).peak


def _cci(subject: Subject, path: Trajectory, name: str) -> Cci:
    head = subject.generator.bundle.commitment_head()
    conditionals = HeadConditionals(head, head.trust_level)
    return cci_as_read(conditionals, path.x_1[:FEW], subject.noise(name), draws_at_once=FEW)
