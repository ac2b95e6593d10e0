"""What ``fewstep evaluate`` works on: model, scorer, real text and protocol, made from its options."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fewstep.cli.axes import Axes
from fewstep.cli.device import pick_device
from fewstep.cli.model_text import corpus_of, packed_blocks
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.bundle import ModelBundle
    from fewstep.data import PreparedCorpus
    from fewstep.evaluation.processes import Processes
    from fewstep.evaluation.protocol import ScoringProtocol
    from fewstep.evaluation.scorers import Scorer
    from fewstep.evaluation.sweep import Sweep
    from fewstep.evaluation.sweep_texts import TextGroup
    from fewstep.types import TokenBatch

RUN = "run"


def make_sweep(
    args: argparse.Namespace, axes: Axes, processes: "Processes", made_with: dict[str, Any] | None = None
) -> "Sweep":
    """Model, scorer, real text and all that is to be made, checked before the first sample.

    ``made_with``: provenance of the rows.
    """
    from fewstep.bundle import ModelBundle
    from fewstep.evaluation import token_counts
    from fewstep.evaluation.sweep import Sweep
    from fewstep.evaluation.sweep_grammar import grammar_reference
    from fewstep.evaluation.sweep_mauve import MauveReference
    from fewstep.evaluation.sweep_measures import TrainText
    from fewstep.evaluation.train_text import train_stream
    from fewstep.evaluation.yardsticks import yardsticks
    from fewstep.metrics import mauve_package_version

    if args.mauve:
        mauve_package_version()
    device = own_device(args.device)
    bundle = ModelBundle.from_pretrained(args.path).to(device)
    check_steps(bundle, axes)
    groups = flow_texts(bundle, axes)
    scorer = make_scorer(args, bundle, device)
    corpus = prepared_text(args, bundle, processes)
    held_out = held_out_text(args, corpus)
    counts = token_counts(corpus.train, len(bundle.tokenizer))
    beside = yardsticks(bundle, held_out, counts, args.samples, seed=0)
    grammar = grammar_reference(args.source or bundle.identity.source, bundle.tokenizer)
    mauve = None
    if args.mauve:
        mauve = MauveReference(scorer, bundle.tokenizer, held_out, other_held_out(args, corpus))
    more = {name: value for one in (mauve, grammar) if one for name, value in one.protocol().items()}
    return Sweep(
        bundle,
        scorer,
        make_protocol(args, bundle, scorer, corpus, more),
        [*beside, *groups],
        TrainText(train_stream(corpus.train), bundle.identity.block_size),
        processes=processes,
        batch_size=args.batch_size,
        cci_examples=args.cci_examples,
        mauve=mauve,
        grammar=grammar,
        provenance=made_with,
    )


def check_steps(bundle: "ModelBundle", axes: Axes) -> None:
    """Raise ``UserError`` where the model was trained for another number of steps than one that is asked for."""
    trained = bundle.identity.trained_nfe
    if trained is not None and set(axes.steps) != {trained}:
        raise UserError(
            f"--steps {','.join(map(str, axes.steps))}: the objective of this model "
            f"({bundle.identity.objective or 'unnamed'}) trained it for {trained} steps and no other number; "
            f"give --steps {trained}"
        )


def flow_texts(bundle: "ModelBundle", axes: Axes) -> "list[TextGroup]":
    """The model's own samples in every setting. Raises ``UserError`` for one that does not fit the model."""
    from fewstep.evaluation.sweep_texts import FlowTexts
    from fewstep.pipeline import TextGenerator

    generator = TextGenerator(bundle)
    return [FlowTexts(generator, sampler, axes.readouts) for sampler in axes.samplers()]


def own_device(name: str) -> str:
    """Each process of a machine takes a GPU of its own, as ``torchrun`` numbers them."""
    device, local_rank = pick_device(name), os.environ.get("LOCAL_RANK")
    if device != "cuda" or local_rank is None:
        return device
    import torch

    return f"cuda:{int(local_rank) % torch.cuda.device_count()}"


def make_scorer(args: argparse.Namespace, bundle: "ModelBundle", device: str) -> "Scorer":
    """The scorer that ``--scorer`` names."""
    from fewstep.evaluation.scorers import RunScorer, TransformersScorer

    if args.scorer == RUN:
        return RunScorer(bundle.scorer(), bundle.tokenizer, batch_size=args.batch_size)
    return TransformersScorer(args.scorer, dtype=args.scorer_dtype, device=device)


def prepared_text(args: argparse.Namespace, bundle: "ModelBundle", processes: "Processes") -> "PreparedCorpus":
    """The text as training packed it; the first process packs it, the others read what it made."""
    if not processes.is_first:
        processes.from_first(None)
    try:
        return corpus_of(
            bundle,
            source=args.source,
            text_field=args.text_field,
            max_documents=args.max_documents,
            cache_dir=args.cache_dir,
            pack=not args.no_pack,
        )
    finally:
        if processes.is_first:
            processes.from_first(None)


def held_out_text(args: argparse.Namespace, corpus: "PreparedCorpus") -> "TokenBatch":
    """As many held-out blocks as there are samples of all seeds; packed ones without padding.

    Raises ``UserError`` where the text has fewer.
    """
    from fewstep.evaluation import held_out_blocks

    wanted = args.samples * args.seeds
    if args.no_pack:
        return held_out_blocks(corpus.validation, wanted)[0]
    tokens = full_blocks(corpus, wanted)
    if len(tokens.ids) < wanted:
        raise UserError(
            f"{args.samples} samples for each of {args.seeds} seeds: the held-out text has {len(tokens.ids)} full "
            "blocks to compare with; ask for fewer samples or seeds"
        )
    return tokens


def full_blocks(corpus: "PreparedCorpus", wanted: int) -> "TokenBatch":
    """``wanted`` packed blocks without padding, or all there are."""
    from fewstep.types import TokenBatch

    tokens = packed_blocks(corpus, wanted)
    full = tokens.mask.all(1)
    return TokenBatch(tokens.ids[full][:wanted], tokens.mask[full][:wanted])


def other_held_out(args: argparse.Namespace, corpus: "PreparedCorpus") -> "TokenBatch | None":
    """As many held-out blocks as :func:`held_out_text` gives, none of them among those; None where there are fewer."""
    from fewstep.data.batches import spread_rows
    from fewstep.evaluation import held_out_blocks

    wanted, length = args.samples * args.seeds, len(corpus.validation)
    taken = set(spread_rows(length, wanted if args.no_pack else min(wanted + 1, length)).tolist())
    rest = replace(corpus, validation=corpus.validation.select([row for row in range(length) if row not in taken]))
    if len(rest.validation) < wanted:
        return None
    found = held_out_blocks(rest.validation, wanted)[0] if args.no_pack else full_blocks(rest, wanted)
    return found if len(found.ids) == wanted else None


def make_protocol(
    args: argparse.Namespace,
    bundle: "ModelBundle",
    scorer: "Scorer",
    corpus: "PreparedCorpus",
    more: Mapping[str, Any],
) -> "ScoringProtocol":
    """What rows must have in common to stand in one table; ``more`` is of measures that not all tables have."""
    from fewstep.evaluation.protocol import TO_FIRST_END, WHOLE_BLOCK, ScoringProtocol, protocol_versions

    return ScoringProtocol(
        scorer=scorer.identity(),
        num_samples=args.samples,
        seeds=tuple(range(args.seeds)),
        block_size=bundle.identity.block_size,
        end_of_text=TO_FIRST_END if args.no_pack else WHOLE_BLOCK,
        versions=protocol_versions(),
        yardsticks={
            "corpus": corpus.fingerprint,
            "held_out": "spread evenly over the validation split",
            "language_model_temperature": 1.0,
            "cci_examples": args.cci_examples,
            **more,
        },
    )
