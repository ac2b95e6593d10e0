"""What a run says about a question: figures looked up wherever they stand, and settings that differ in one thing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fewstep.diagnostics.result import Estimate, Series
from fewstep.evaluation.figures import ENTROPY_BAND_NATS
from fewstep.evaluation.measurements import FEW_STEPS
from fewstep.evaluation.sweep_row import AXES, FLOW, HELD_OUT, SweepRow
from fewstep.evaluation.table import GenerationRow
from fewstep.lab.report.diagnosed import Diagnosed
from fewstep.lab.report.run_folder import RunReport
from fewstep.lab.report.wording import change
from fewstep.metrics.intervals import Interval

PARALLEL, HEAD = "parallel", "head"
OWN_SCORER = "RunScorer"
"""The class that the protocol names where a run's own language model scored."""


@dataclass(frozen=True)
class Sampled:
    """Samples of one plain setting, or a yardstick's texts (``readout`` and ``num_steps`` None).

    ``reinjection`` is the strength gamma; what a row does not tell is None.
    """

    name: str
    readout: str | None
    num_steps: int | None
    reinjection: float
    perplexity: float
    perplexity_interval: Interval | None
    entropy_nats: float
    nfe: int | None = None
    late_flip_rate: float | None = None
    memorised_8grams: float | None = None
    repeated_4grams: float | None = None
    longest_copy_tokens: int | None = None
    examples: tuple[str, ...] = ()

    def setting(self) -> str:
        """In words."""
        if self.num_steps is None:
            return self.name
        return f"{self.readout} readout, K = {self.num_steps}, gamma = {self.reinjection:g}"


@dataclass(frozen=True)
class Gain:
    """``after`` differs from ``before`` in one thing, ``way``; ``real`` is held-out text, where it was scored."""

    way: str
    before: Sampled
    after: Sampled
    real: Sampled | None

    @property
    def share(self) -> float:
        """Share of the perplexity that is gone; negative where it rose."""
        return 1 - self.after.perplexity / self.before.perplexity

    @property
    def certain(self) -> bool:
        """Whether the 95 % intervals lie apart; true where there are none."""
        first, second = self.before.perplexity_interval, self.after.perplexity_interval
        return first is None or second is None or second.high < first.low or second.low > first.high

    @property
    def colder(self) -> bool:
        """Whether the samples' entropy is below the band around real text's, and below what it was."""
        if self.real is None:
            return False
        low = self.real.entropy_nats - ENTROPY_BAND_NATS
        return self.after.entropy_nats < min(low, self.before.entropy_nats)

    def words(self) -> str:
        """ "-62 % perplexity at K = 4"."""
        told = f"{change(-self.share)} perplexity at K = {self.after.num_steps}"
        if not self.certain:
            told += ", within the intervals"
        if self.colder and self.real is not None:
            told += f", but colder: entropy {self.after.entropy_nats:.2f} against {self.real.entropy_nats:.2f} nats"
        return told


@dataclass(frozen=True)
class Evidence:
    """Look-ups in one ``run``."""

    run: RunReport

    def estimate(self, name: str) -> Estimate | None:
        """The first that was determined, of the diagnosis before those of training."""
        found = [one.table[name] for one in self.run.diagnoses if name in one.table]
        return next((one for one in found if one.value is not None), found[0] if found else None)

    def value(self, name: str) -> float | None:
        """Its value."""
        estimate = self.estimate(name)
        return None if estimate is None else estimate.value

    def curve(self, name: str) -> Series | None:
        """The first curve called ``RESULT/KEY``, such as "tube/flips"."""
        return next((curve for one in self.run.diagnoses if (curve := one.curve(name)) is not None), None)

    def told_by(self, name: str) -> Diagnosed | None:
        """The diagnosis that holds the figure or the curve of that name."""
        return next((one for one in self.run.diagnoses if name in one.table or one.curve(name) is not None), None)

    def first_value(self, names: Iterable[str]) -> float | None:
        """The value of the first name that has one."""
        return next((value for name in names if (value := self.value(name)) is not None), None)

    def token_accuracy(self) -> float | None:
        """On clean latents, from a diagnosis or from the last validation of the autoencoder."""
        found = self.first_value(("token_accuracy", "noise_accuracy_at_0"))
        logged = (stage.last.get("val/token_accuracy") for stage in self.run.stages)
        return found if found is not None else next((value for value in logged if value is not None), None)

    @property
    def sampled(self) -> tuple[Sampled, ...]:
        """Plain settings of the sweep, or of the quickstart's table where there is no sweep."""
        if self.run.rows:
            found: Iterable[Sampled | None] = map(_of_sweep, self.run.rows)
        else:
            found = map(_of_table, () if self.run.table is None else self.run.table.rows)
        return tuple(one for one in found if one is not None)

    @property
    def own_scorer(self) -> bool:
        """Whether samples were scored by the run's own language model; also where that is not told."""
        return not self.run.rows or self.run.rows[0].protocol.get("scorer", {}).get("class") == OWN_SCORER

    def scored_by(self) -> str:
        """Which table the samples' scores are of, in words; "" where there is none."""
        if self.run.rows:
            first = self.run.rows[0]
            scorer = first.protocol.get("scorer", {})
            name = (
                "the run's language model" if self.own_scorer else scorer.get("name") or scorer.get("class", "unknown")
            )
            return f"fewstep evaluate, {first.num_samples} samples, scorer {name}, protocol {first.protocol_hash}"
        table = self.run.table
        return "" if table is None else f"table.json, scorer {table.scorer}"

    def yardstick(self, name: str = HELD_OUT) -> Sampled | None:
        """Texts that stand beside the samples."""
        return next((one for one in self.sampled if one.num_steps is None and one.name == name), None)

    def flows(self, readout: str, reinjection: float | None = None) -> list[Sampled]:
        """The model's own samples by rising number of steps, of one strength or of all."""
        chosen = (
            one
            for one in self.sampled
            if one.num_steps is not None
            and one.readout == readout
            and (reinjection is None or one.reinjection == reinjection)
        )
        return sorted(chosen, key=lambda one: (one.num_steps or 0, one.reinjection))

    def reinjection_gains(self) -> tuple[Gain, ...]:
        """Of the best strength, at few steps and at the most; empty where nothing compares."""
        return self._gains(self.flows(PARALLEL), lambda one: f"re-injection {one.reinjection:g}", strengths=True)

    def commitment_gains(self) -> tuple[Gain, ...]:
        """Of the commitment head on deterministic latents, at few steps and at the most."""
        return self._gains(self.flows(HEAD, 0.0), lambda one: "the commitment head", strengths=False)

    def _gains(
        self, others: Sequence[Sampled], called: Callable[[Sampled], str], *, strengths: bool
    ) -> tuple[Gain, ...]:
        before = {one.num_steps: one for one in self.flows(PARALLEL, 0.0)}
        others = [one for one in others if one.num_steps in before and (one.reinjection > 0 or not strengths)]
        real, gains = self.yardstick(), []
        for steps in judged_steps(one.num_steps for one in others if one.num_steps is not None):
            found = [Gain(called(one), before[steps], one, real) for one in others if one.num_steps == steps]
            gains.append(max(found, key=lambda gain: (not gain.colder, gain.share)))
        return tuple(gains)


def judged_steps(steps: Iterable[int]) -> list[int]:
    """:data:`FEW_STEPS`, or the fewest above 1, and the most, of those that there are."""
    found = sorted(set(steps))
    if not found:
        return []
    few = FEW_STEPS if FEW_STEPS in found else next((one for one in found if one > 1), found[0])
    return sorted({few, found[-1]})


def escapes(evidence: Evidence) -> str:
    """What to try against undecided tokens, with what it gained here."""
    noise, head = evidence.reinjection_gains(), evidence.commitment_gains()
    if not noise and not head:
        return (
            "Try re-injection of at least 0.5, or the commitment head; what they gain here, fewstep evaluate RUN/model "
            "tells."
        )
    told = [_tried(gains) for gains in (noise, head) if gains]
    return f"Try {', or '.join(told)}."


def ways_out(evidence: Evidence) -> str:
    """The same in short: the best gain of each way."""
    best = [
        max(gains, key=lambda gain: (not gain.colder, gain.share))
        for gains in (evidence.reinjection_gains(), evidence.commitment_gains())
        if gains
    ]
    helping = [f"{gain.way} ({gain.words()})" for gain in best if gain.share > 0]
    return f"Ways out, as measured here: {', '.join(helping)}." if helping else escapes(evidence)


def _tried(gains: Sequence[Gain]) -> str:
    names = list(dict.fromkeys(gain.way for gain in gains))
    if len(names) == 1:
        return f"{names[0]} (here {'; '.join(gain.words() for gain in gains)})"
    return "re-injection (here " + "; ".join(f"{gain.way}: {gain.words()}" for gain in gains) + ")"


def _of_sweep(row: SweepRow) -> Sampled | None:
    """None for a setting with something more than steps, strength and readout, and for what was not scored."""
    setting = row.setting
    if row.perplexity is None or any(axis.unusual(setting) for axis in AXES):
        return None
    if setting.noise_temperature not in (None, 1.0):
        return None
    try:
        strength = float(setting.reinjection or 0.0)
    except ValueError:
        return None  # a rule, not a number
    return Sampled(
        setting.name,
        setting.readout,
        setting.num_steps,
        strength,
        row.perplexity,
        row.perplexity_interval,
        row.entropy_nats,
        row.nfe,
        row.late_flip_rate,
        row.memorised_8grams,
        row.repeated_4grams,
        row.longest_copy_tokens,
        row.examples,
    )


def _of_table(row: GenerationRow) -> Sampled:
    return Sampled(
        row.name if row.readout is None else FLOW,
        row.readout,
        row.num_steps,
        row.reinjection or 0.0,
        row.perplexity,
        row.perplexity_interval,
        row.entropy_nats,
        row.nfe,
        examples=row.examples,
    )
