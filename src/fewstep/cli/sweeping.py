"""What ``fewstep evaluate`` works on: model, scorer, real text and protocol, made from its options."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    args: argparse.Namespace,
    steps: Sequence[int],
    rules: Sequence[str],
    temperatures: Sequence[float],
    readouts: Sequence[str],
    processes: "Processes",
) -> "Sweep":
    """Model, scorer, real text and all that is to be made, checked before the first sample."""
    from fewstep.bundle import ModelBundle
    from fewstep.cli.reinjection import parse_reinjection
    from fewstep.evaluation import token_counts
    from fewstep.evaluation.sweep import Sweep
    from fewstep.evaluation.sweep_measures import TrainText
    from fewstep.evaluation.sweep_texts import CountedConfidence, FlowTexts, yardsticks
    from fewstep.evaluation.train_text import train_stream
    from fewstep.pipeline import TextGenerator

    device = own_device(args.device)
    bundle = ModelBundle.from_pretrained(args.path).to(device)
    generator = TextGenerator(bundle)
    groups: list[TextGroup] = []
    for written in rules:
        for temperature in temperatures:
            for num_steps in steps:
                confidence = CountedConfidence(generator)
                rule = parse_reinjection(written, confidence)
                groups.append(FlowTexts(generator, num_steps, written, rule, temperature, readouts, confidence))
    scorer = make_scorer(args, bundle, device)
    corpus = prepared_text(args, bundle, processes)
    held_out = held_out_text(args, corpus)
    counts = token_counts(corpus.train, len(bundle.tokenizer))
    beside = yardsticks(bundle, held_out, counts, args.samples, seed=0)
    return Sweep(
        bundle,
        scorer,
        make_protocol(args, bundle, scorer, corpus),
        [*beside, *groups],
        TrainText(train_stream(corpus.train), bundle.identity.block_size),
        processes=processes,
        batch_size=args.batch_size,
        cci_examples=args.cci_examples,
    )


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
    from fewstep.types import TokenBatch

    wanted = args.samples * args.seeds
    if args.no_pack:
        return held_out_blocks(corpus.validation, wanted)[0]
    tokens = packed_blocks(corpus, wanted)
    full = tokens.mask.all(1)
    if int(full.sum()) < wanted:
        raise UserError(
            f"{args.samples} samples for each of {args.seeds} seeds: the held-out text has {int(full.sum())} full "
            "blocks to compare with; ask for fewer samples or seeds"
        )
    return TokenBatch(tokens.ids[full][:wanted], tokens.mask[full][:wanted])


def make_protocol(
    args: argparse.Namespace, bundle: "ModelBundle", scorer: "Scorer", corpus: "PreparedCorpus"
) -> "ScoringProtocol":
    """What rows must have in common to stand in one table."""
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
        },
    )
