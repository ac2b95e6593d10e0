"""Rules about the map, about the ways out, and about what the samples are like."""

from fewstep.evaluation.measurements import FEW_STEPS, NOISE_LEVEL_RMS
from fewstep.lab.report.evidence import HEAD, PARALLEL, Evidence, Gain, Sampled
from fewstep.lab.report.rules import DIAGNOSE, EVALUATE, Outcome, Rule
from fewstep.lab.report.thresholds import (
    COMMITMENT_INDEX,
    COPIES,
    ENTROPY_GAP,
    GAIN,
    LISTENING_NATS,
    SATURATION,
    STEPPED_STIFFNESS,
    STILL_FALLING,
    State,
)
from fewstep.lab.report.wording import change, figure, percent

COPIES_ADVICE = "The model is too large, or trained too long, for its text: use more text, or stop earlier."
NOISED_CCI = f"cci_noise_{NOISE_LEVEL_RMS:g}"
ROUNDING = 1e-9
"""Times are decimal fractions: 1 - 1/4 is meant to be among them."""


def is_steep(evidence: Evidence) -> Outcome | None:
    """Stiffness times the length of a step, before the last step."""
    curve = evidence.curve("stiffness/stiffness")
    last = 1 - 1 / FEW_STEPS + ROUNDING
    points = [] if curve is None else [(y, x) for x, y in zip(curve.x, curve.y, strict=True) if x <= last]
    if not points:
        return None
    peak, time = max(points)
    value = peak / FEW_STEPS
    state = STEPPED_STIFFNESS.state(value)
    found = (
        f"The velocity's largest singular value is {figure(peak)} at t = {figure(time)}; in {FEW_STEPS} equal steps "
    )
    found += f"one step multiplies a small difference by up to {figure(1 + value)}."
    advice = "Put more steps where the map is steep, or take a second-order solver (fewstep sample --solver heun)."
    return Outcome(state, figure(value), found, "" if state == "good" else advice)


def saturates(evidence: Evidence) -> Outcome | None:
    """Deterministic perplexity at the most steps, against real text's and against fewer steps."""
    flows, real = evidence.flows(PARALLEL, 0.0), evidence.yardstick()
    if len(flows) < 2 or real is None:
        return None
    before, last = flows[-2], flows[-1]
    value = last.perplexity / real.perplexity
    state: State = SATURATION.state(value)
    gain = Gain("more steps", before, last, real)
    falling = gain.share >= STILL_FALLING and gain.certain
    if state == "bad" and falling:
        state = "look"
    found = f"At K = {last.num_steps} the deterministic samples have {figure(value)} times real text's perplexity "
    found += f"({figure(last.perplexity)}), {change(-gain.share)} against K = {before.num_steps}"
    found += ": still falling." if falling else ": more steps do not lower it any more."
    if state == "good":
        return Outcome(state, figure(value), found)
    shuffled = evidence.yardstick("words shuffled")
    if shuffled is not None and last.perplexity > shuffled.perplexity:
        found += f" Real text with its words shuffled has {figure(shuffled.perplexity)}."
    advice = (
        "Take more steps."
        if falling
        else "No number of steps mends this: change what a step does (see the next two rules)."
    )
    return Outcome(state, figure(value), found, advice)


def reinjection_helps(evidence: Evidence) -> Outcome | None:
    """Fresh noise against none, parallel readout."""
    return _gain_outcome(
        evidence.reinjection_gains(),
        "Fresh noise does not help here: the estimate that it is put around may be too coarse (train the flow longer), "
        "or there are too few steps for it to act.",
    )


def commitment_helps(evidence: Evidence) -> Outcome | None:
    """The head against the parallel readout, on the same deterministic latents."""
    outcome = _gain_outcome(
        evidence.commitment_gains(),
        "The head does not help here: train it longer, or at the noise that generated latents have.",
    )
    if outcome is None or outcome.state != "good":
        return outcome
    if not evidence.own_scorer:
        return outcome
    caution = " The scorer is the run's own language model, from which the head starts: the gain is flattered."
    return Outcome(outcome.state, outcome.figure, outcome.finding + caution, outcome.advice)


def _gain_outcome(gains: tuple[Gain, ...], otherwise: str) -> Outcome | None:
    if not gains:
        return None
    states = [_gain_state(gain) for gain in gains]
    order: tuple[State, ...] = ("good", "look", "bad")
    best = min(range(len(gains)), key=lambda index: (order.index(states[index]), -gains[index].share))
    ways = dict.fromkeys(gain.way for gain in gains)
    told = ", ".join(f"{way}: {'; '.join(gain.words() for gain in gains if gain.way == way)}" for way in ways)
    found = f"Against deterministic steps read in parallel: {told}."
    advice = ""
    if states[best] == "bad":
        advice = otherwise
    elif any(gain.colder for gain in gains):
        advice = "A part of the gain is being colder: compare at equal entropy, with a smaller strength."
    elif states[best] == "look":
        advice = "The gain is small or uncertain: measure it on more samples, and at other strengths and steps."
    shown = f"{change(-gains[best].share)} at K = {gains[best].after.num_steps}"
    return Outcome(states[best], shown, found, advice)


def _gain_state(gain: Gain) -> State:
    state = GAIN.state(gain.share)
    if state == "good" and (gain.colder or not gain.certain):
        return "look"
    return state


def head_listens(evidence: Evidence) -> Outcome | None:
    """Perplexity of held-out text under the head with its own latent, and with none."""
    value = evidence.value("listening_gain_nats")
    if value is None:
        return None
    state = LISTENING_NATS.state(value)
    right, none, other = (evidence.value(f"listening_perplexity_{name}") for name in ("right", "none", "other"))
    found = f"The head gains {figure(value)} nats a token from its own latent"
    if right is not None and none is not None and other is not None:
        found += (
            f": perplexity of held-out text {figure(right)} with it, {figure(none)} with none, {figure(other)} with "
        )
        found += "another text's"
    found += "."
    if state == "good":
        return Outcome(state, figure(value), found)
    found += " It ignores its latents." if state == "bad" else " It hardly listens to its latents."
    advice = "Train it at less noise (trust_level), or hide more of its earlier tokens in training."
    return Outcome(state, figure(value), found, advice)


def commits(evidence: Evidence) -> Outcome | None:
    """CCI of the head as it reads; of another's readout, which is not told the noise, on data with some."""
    name = next((name for name in ("cci", NOISED_CCI) if evidence.value(name) is not None), "cci")
    value = evidence.value(name)
    if value is None:
        return None
    state = COMMITMENT_INDEX.state(value)
    before, after = (evidence.value(f"{name}_{side}_nats") for side in ("marginal", "committed"))
    found = f"On data with {NOISE_LEVEL_RMS:g} rms of noise earlier" if name == NOISED_CCI else "Earlier"
    found += f" tokens take away {percent(value)} of the uncertainty about a token"
    if before is not None and after is not None:
        found += f" ({figure(before)} nats given the latent alone, {figure(after)} with them)"
    advice = "The head reads position by position: see whether it sees its earlier tokens, or whether nothing is open."
    return Outcome(state, figure(value), f"{found}.", "" if state == "good" else advice)


def entropy_collapses(evidence: Evidence) -> Outcome | None:
    """Entropy of the likeliest samples of each readout, which repetition would make likely."""
    real = evidence.yardstick()
    best = [min(flows, key=lambda one: one.perplexity) for flows in map(evidence.flows, (PARALLEL, HEAD)) if flows]
    if real is None or not best:
        return None
    worst = min(best, key=lambda one: one.entropy_nats)
    gap = real.entropy_nats - worst.entropy_nats
    state = ENTROPY_GAP.state(gap)
    found = (
        f"Of the likeliest samples of each readout, those with the least entropy have {worst.entropy_nats:.2f} nats "
    )
    found += f"({worst.setting()}), real text {real.entropy_nats:.2f}."
    if worst.repeated_4grams is not None:
        found += f" {percent(worst.repeated_4grams)} of their 4-grams repeat one before"
        found += "." if real.repeated_4grams is None else f", {percent(real.repeated_4grams)} of real text's."
    repeats = worst.repeated_4grams is None or worst.repeated_4grams > (real.repeated_4grams or 0.0)
    reason = "repeat themselves" if repeats else "use fewer different tokens (4-grams repeat no more than in real text)"
    advice = f"They are likely because they {reason}: lower the strength, or compare at equal entropy."
    return Outcome(state, figure(gap), found, "" if state == "good" else advice)


def copies_train_text(evidence: Evidence) -> Outcome | None:
    """Memorised 8-grams of the samples that have the most, against held-out text's."""
    real = evidence.yardstick()
    flows = [one for readout in (PARALLEL, HEAD) for one in evidence.flows(readout) if one.memorised_8grams is not None]
    if real is None or real.memorised_8grams is None or not flows:
        return None
    worst: Sampled = max(flows, key=lambda one: one.memorised_8grams or 0.0)
    share, usual = worst.memorised_8grams or 0.0, real.memorised_8grams
    longest = max(one.longest_copy_tokens or 0 for one in flows)
    found = f"At most {percent(share)} of the samples' 8-grams stand in the train text ({worst.setting()})"
    found = found if share else "None of the samples' 8-grams stands in the train text"
    found += f", of held-out text's {percent(usual)}. Longest copy: {longest} tokens."
    if share and not usual:
        return Outcome("look", percent(share), found, COPIES_ADVICE)
    value = share / usual if share else 0.0
    state = COPIES.state(value)
    return Outcome(state, figure(value), found, "" if state == "good" else COPIES_ADVICE)


SAMPLE_RULES = (
    Rule(
        "steep",
        "Is the map too steep for few steps?",
        STEPPED_STIFFNESS,
        is_steep,
        f"{DIAGNOSE} --only stiffness",
        "stiffness",
        reads=("stiffness",),
    ),
    Rule(
        "saturates",
        "Do deterministic steps get there, or saturate?",
        SATURATION,
        saturates,
        f"{EVALUATE} --steps 1,2,4,8,16,32 --reinjection 0",
    ),
    Rule(
        "reinjection",
        "Does re-injection help?",
        GAIN,
        reinjection_helps,
        f"{EVALUATE} --steps 4,32 --reinjection 0,0.5,1 --readout parallel",
    ),
    Rule(
        "head",
        "Does the commitment head help?",
        GAIN,
        commitment_helps,
        f"{EVALUATE} --steps 4,32 --reinjection 0 --readout parallel,head",
    ),
    Rule(
        "listening",
        "Does the head listen to its latents?",
        LISTENING_NATS,
        head_listens,
        f"{DIAGNOSE} --only listening",
        "listening",
        reads=("listening_gain_nats",),
    ),
    Rule(
        "cci",
        "Does the head commit to its tokens?",
        COMMITMENT_INDEX,
        commits,
        f"{DIAGNOSE} --only cci",
        "cci",
        reads=("cci", NOISED_CCI),
        of_decoder=True,
    ),
    Rule(
        "entropy",
        "Are likely samples likely because they repeat themselves?",
        ENTROPY_GAP,
        entropy_collapses,
        EVALUATE,
    ),
    Rule("copies", "Are samples copied from the train text?", COPIES, copies_train_text, EVALUATE),
)
