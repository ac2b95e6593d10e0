"""Axes of ``fewstep evaluate``, and what it works on: model, scorer, real text and protocol."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from fewstep.cli.common import DeviceOptions, TextOptions, corpus_of, packed_blocks
from fewstep.cli.parser import comma_numbers, comma_parts
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.data import PreparedCorpus
    from fewstep.evaluation.old_sweep import Sweep
    from fewstep.evaluation.processes import Processes
    from fewstep.evaluation.protocol import ScoringProtocol
    from fewstep.evaluation.scorers import Scorer
    from fewstep.evaluation.sweep_row import Setting
    from fewstep.model import SavedModel
    from fewstep.types import TokenBatch


@dataclass(kw_only=True)
class ScoringOptions:
    """Scoring.

    Args:
        samples: texts or images per seed.
        seeds: number of seeds, from 0 on.
        scorer: run for the model's own language model, or a transformers folder or hub name.
        scorer_dtype: precision of a transformers scorer.
        cci_examples: samples on which CCI is measured, 0 for none.
        batch_size: samples generated at a time.
    """

    samples: PositiveInt = 128
    seeds: PositiveInt = 3
    scorer: str = "run"
    scorer_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    cci_examples: NonNegativeInt = 8
    batch_size: PositiveInt = 64


@dataclass(kw_only=True)
class AxisOptions:
    """Axes: every combination is a row; lists have commas between their values.

    Args:
        steps: numbers of steps.
        reinjection: strengths with commas between, and rules as in fewstep sample, such as linear:1,0.2, with blanks
            between.
        readout: parallel, head, head_off (the head without its view of earlier tokens).
        noise_temperature: factors on a step's old noise; below 1 is colder.
        initial_temperature: factors on the noise that sampling starts from.
        noise: fresh, reused (re-injected noise drawn in every step, or once).
        snap: none, and rules as in fewstep sample.
    """

    steps: list[int] | int | str = "1,2,4,8,16,32"
    reinjection: list[float | str] = field(default_factory=lambda: ["0,0.5,1"])
    readout: list[str] | str = "parallel,head"
    noise_temperature: list[float] | float | str = 1.0
    initial_temperature: list[float] | float | str = 1.0
    noise: list[str] | str = "fresh"
    snap: list[str] | str = "none"


@dataclass(kw_only=True)
class SweepOptions(AxisOptions, ScoringOptions, TextOptions, DeviceOptions):
    """Everything that decides the rows of a sweep.

    Args:
        model: a model folder, or a .ckpt file of the flow or a later stage.
        pack: --no_pack for documents in blocks of their own, as in training with pack: false; blocks count to their
            first end.
        mauve: measure MAUVE against held-out text too: needs the extra fewstep[mauve] and many samples.
    """

    model: str
    pack: bool = True
    mauve: bool = False


def sampler_settings(options: AxisOptions) -> "list[Setting]":
    """Every combination from noise to latents, the number of steps changing fastest, checked before a model is read."""
    from fewstep.evaluation.sweep_row import FRESH, NO_SNAP, REUSED
    from fewstep.evaluation.sweep_texts import flow_setting
    from fewstep.samplers import parse_rule, parse_snap

    steps = comma_numbers(options.steps, "steps", int)
    if min(steps) < 1:
        raise UserError(f"--steps {options.steps!r}: expected whole numbers of at least 1")
    rules, snaps = written_rules(options.reinjection), comma_parts(options.snap, "snap")
    noises = comma_parts(options.noise, "noise")
    if unknown := [noise for noise in noises if noise not in (FRESH, REUSED)]:
        raise UserError(f"noise is {unknown[0]!r}: expected some of {FRESH}, {REUSED}")
    try:
        for rule in rules:
            parse_rule(rule)
        for snap in snaps:
            if snap != NO_SNAP:
                parse_snap(snap)
    except ValueError as error:
        raise UserError(str(error)) from None
    colds = comma_numbers(options.noise_temperature, "noise_temperature", float)
    starts = comma_numbers(options.initial_temperature, "initial_temperature", float)
    return [
        flow_setting(num_steps, rule, cold, initial_temperature=start, noise=noise, snap=snap)
        for rule, cold, start, noise, snap, num_steps in product(rules, colds, starts, noises, snaps, steps)
    ]


def written_rules(given: Sequence[float | str]) -> list[str]:
    """The rules of re-injection as a row names them: numbers in their shortest form, the others as written.

    An item without a colon is a list with commas; one with a colon is one rule, whose numbers have commas.
    """
    rules = []
    for item in map(str, given):
        for text in [item.strip()] if ":" in item else comma_parts(item, "reinjection"):
            try:
                rules.append(f"{float(text):g}")
            except ValueError:
                rules.append(text)
    return rules


def make_sweep(
    options: SweepOptions, settings: "Sequence[Setting]", processes: "Processes", provenance: dict[str, Any]
) -> "Sweep":
    """Model, scorer, real text and every row's setting, checked before the first sample."""
    from fewstep.evaluation.baselines import token_counts
    from fewstep.evaluation.old_sweep import Sweep
    from fewstep.evaluation.sweep_grammar import grammar_reference
    from fewstep.evaluation.sweep_mauve import MauveReference
    from fewstep.evaluation.sweep_measures import TrainText
    from fewstep.evaluation.sweep_texts import FlowTexts
    from fewstep.evaluation.train_text import train_stream
    from fewstep.evaluation.yardsticks import yardsticks
    from fewstep.metrics.text import mauve_package_version
    from fewstep.model import SavedModel
    from fewstep.pipeline import TextGenerator

    if options.mauve:
        mauve_package_version()
    device = local_device(options)
    bundle = SavedModel.from_pretrained(options.model, allow=options.allowed, kind="text").to(device)
    check_steps(bundle, list(dict.fromkeys(setting.num_steps for setting in settings)))
    generator = TextGenerator(bundle)
    readouts = comma_parts(options.readout, "readout")
    groups = [FlowTexts(generator, sampler, readouts) for sampler in settings]
    scorer = make_scorer(options, bundle, device)
    corpus = prepared_text(options, bundle, processes, pack=options.pack)
    held_out = held_out_text(options, corpus, pack=options.pack)
    beside = yardsticks(bundle, held_out, token_counts(corpus.train, corpus.report.vocabulary), options.samples, seed=0)
    grammar = grammar_reference(options.source or bundle.identity.source, bundle.tokenizer)
    mauve = None
    if options.mauve:
        mauve = MauveReference(scorer, bundle.tokenizer, held_out, other_held_out(options, corpus))
    extra = {name: value for reference in (mauve, grammar) if reference for name, value in reference.protocol().items()}
    return Sweep(
        bundle,
        scorer,
        make_protocol(options, bundle, scorer, corpus, extra, pack=options.pack),
        [*beside, *groups],
        TrainText(train_stream(corpus.train), bundle.identity.block_size),
        processes=processes,
        batch_size=options.batch_size,
        cci_examples=options.cci_examples,
        mauve=mauve,
        grammar=grammar,
        provenance=provenance,
    )


def check_steps(bundle: "SavedModel", steps: "Sequence[int | None]") -> None:
    """Raise ``UserError`` if the model was trained for another number of steps than a given one."""
    trained = bundle.identity.trained_nfe
    if trained is not None and set(steps) != {trained}:
        raise UserError(
            f"--steps {','.join(map(str, steps))}: the objective of this model "
            f"({bundle.identity.objective or 'unnamed'}) trained it for {trained} steps and no other number; "
            f"give --steps {trained}"
        )


def local_device(options: DeviceOptions) -> str:
    """The device of this rank: each process of a machine takes a GPU of its own, as ``torchrun`` numbers them."""
    device, local_rank = options.pick_device(), os.environ.get("LOCAL_RANK")
    if device != "cuda" or local_rank is None:
        return device
    import torch

    return f"cuda:{int(local_rank) % torch.cuda.device_count()}"


def make_scorer(options: ScoringOptions, bundle: "SavedModel", device: str) -> "Scorer":
    """The scorer that ``--scorer`` names."""
    from fewstep.evaluation.scorers import RunScorer, TransformersScorer

    if options.scorer == "run":
        return RunScorer(bundle.scorer(), bundle.tokenizer, batch_size=options.batch_size)
    return TransformersScorer(options.scorer, dtype=options.scorer_dtype, device=device)


def prepared_text(
    options: TextOptions, bundle: "SavedModel", processes: "Processes", *, pack: bool = True
) -> "PreparedCorpus":
    """The text as training packed it; rank 0 packs it, the others read its cache."""
    if not processes.is_first:
        processes.from_first(None)
    try:
        return corpus_of(bundle, options, pack=pack)
    finally:
        if processes.is_first:
            processes.from_first(None)


def held_out_text(options: ScoringOptions, corpus: "PreparedCorpus", *, pack: bool = True) -> "TokenBatch":
    """As many held-out blocks as there are samples of all seeds; packed ones without padding."""
    from fewstep.evaluation.baselines import held_out_blocks

    count = options.samples * options.seeds
    if not pack:
        return held_out_blocks(corpus.validation, count)[0]
    tokens = full_blocks(corpus, count)
    if len(tokens.ids) < count:
        raise UserError(
            f"{options.samples} samples for each of {options.seeds} seeds: the held-out text has {len(tokens.ids)} "
            "full blocks to compare with; ask for fewer samples or seeds"
        )
    return tokens


def full_blocks(corpus: "PreparedCorpus", count: int) -> "TokenBatch":
    """``count`` packed blocks without padding, or all there are."""
    from fewstep.types import TokenBatch

    tokens = packed_blocks(corpus, count)
    full = tokens.mask.all(1)
    return TokenBatch(tokens.ids[full][:count], tokens.mask[full][:count])


def other_held_out(options: SweepOptions, corpus: "PreparedCorpus") -> "TokenBatch | None":
    """As many held-out blocks as :func:`held_out_text` gives, all of them others; None if there are fewer."""
    from fewstep.data.batches import spread_rows
    from fewstep.evaluation.baselines import held_out_blocks

    count, length = options.samples * options.seeds, len(corpus.validation)
    taken = set(spread_rows(length, min(count + 1, length) if options.pack else count).tolist())
    rest = replace(corpus, validation=corpus.validation.select([row for row in range(length) if row not in taken]))
    if len(rest.validation) < count:
        return None
    blocks = full_blocks(rest, count) if options.pack else held_out_blocks(rest.validation, count)[0]
    return blocks if len(blocks.ids) == count else None


def make_protocol(
    options: ScoringOptions,
    bundle: "SavedModel",
    scorer: "Scorer",
    corpus: "PreparedCorpus",
    extra: Mapping[str, Any],
    *,
    pack: bool = True,
) -> "ScoringProtocol":
    """What rows must have in common to stand in one table; ``extra`` belongs to optional measures."""
    from fewstep.evaluation.protocol import TO_FIRST_END, WHOLE_BLOCK, ScoringProtocol, protocol_versions

    return ScoringProtocol(
        scorer=scorer.identity(),
        num_samples=options.samples,
        seeds=tuple(range(options.seeds)),
        block_size=bundle.identity.block_size,
        end_of_text=WHOLE_BLOCK if pack else TO_FIRST_END,
        versions=protocol_versions(),
        yardsticks={
            "corpus": corpus.fingerprint,
            "held_out": "spread evenly over the validation split",
            "language_model_temperature": 1.0,
            "cci_examples": options.cci_examples,
            **extra,
        },
    )
