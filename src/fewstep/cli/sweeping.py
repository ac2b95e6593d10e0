"""Axes of ``fewstep evaluate``, and what it works on: model, scorer, real text and protocol."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import ScoringOptions, TextOptions, corpus_of, packed_blocks
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.data import PreparedCorpus
    from fewstep.evaluation.processes import Processes
    from fewstep.evaluation.protocol import ScoringProtocol
    from fewstep.evaluation.scorers import Scorer
    from fewstep.model import SavedModel
    from fewstep.types import TokenBatch


def make_scorer(options: ScoringOptions, bundle: "SavedModel", device: str) -> "Scorer":
    """The scorer that ``--scorer`` names."""
    from fewstep.evaluation.scorers import RunScorer
    from fewstep.evaluation.transformers_scorer import TransformersScorer

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
