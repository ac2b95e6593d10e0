"""What is measured on sampled text. A new measure is one function in :data:`MEASURES`. N samples, L tokens."""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.adapters import HeadConditionals, cci_as_read
from fewstep.evaluation.rows import HELD_OUT, Column, Setting, Value
from fewstep.evaluation.scorers import corpus_perplexity, texts_of
from fewstep.evaluation.subject import noise_source
from fewstep.evaluation.sweep import Batch, Measure, Samples, Statistic
from fewstep.evaluation.texts import known_tokens
from fewstep.metrics.text import (
    MAUVE_SCALING,
    MAUVE_SEED,
    distinct_n,
    match_lengths,
    mauve_package_version,
    mauve_score,
    memorised_share,
    repeated_ngrams,
)
from fewstep.readouts import READOUTS, CommitmentHead
from fewstep.registry import import_attribute, resolve
from fewstep.shapes import masked_mean, real_positions
from fewstep.types import KnownTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from fewstep.evaluation.text_plan import TextStudy

MEMORISED, REPEATED = 8, 4
"""Lengths of the n-grams that are looked up in the train text, and of those counted within a sample."""
AT_ONCE = 64
PROMPTS = "the prompts"
"""The rule by which a pair's prompt is given, and its answer written."""

Values = Mapping[str, Value | Statistic]


def written_spans(
    tokenizer: "PreTrainedTokenizerFast", ids: Tensor, text: Tensor, mask: Tensor
) -> list[tuple[int, int]]:
    """Where in the texts of ``ids`` (N, L), ``text`` (N, L), the characters of the tokens ``mask`` (N, L) stand."""
    place = torch.arange(ids.shape[1])
    first = torch.where(mask, place, ids.shape[1]).amin(1, keepdim=True)
    last = torch.where(mask, place, -1).amax(1, keepdim=True)
    # A character whose bytes belong to both sides counts as written.
    before = [len(part.rstrip("\ufffd")) for part in texts_of(tokenizer, ids, text & (place < first))]
    until = [len(part.rstrip("\ufffd")) for part in texts_of(tokenizer, ids, text & (place <= last))]
    return list(zip(before, until, strict=True))


def take_tokens(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
    """The tokens, which of them are the text, and which count: of a text that is partly given the written ones."""
    return {name: samples.tensors[name] for name in ("ids", "text", "mask")}


def scores(study: "TextStudy") -> Measure:
    """Perplexity and entropy under the scorer, and the speed of sampling."""
    tokenizer = study.bundle.tokenizer

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        tokens = take_tokens(setting, batch, samples)
        ids, text, mask = tokens.values()
        spans = {} if study.known is None else {"spans": written_spans(tokenizer, ids, text, mask)}
        scored = study.scorer.score(texts_of(tokenizer, ids, text), ids, mask, **spans)
        return {"scores": torch.stack([scored.nats, scored.tokens], 1), "entropies": scored.entropies_nats, **tokens}

    def values(setting: Setting, samples: Samples) -> Values:
        stacked, seed_index = samples.tensors["scores"], samples.tensors["seed_index"]
        counted = stacked[:, 1] > 0  # a resample of unscored samples alone would have no perplexity
        tokens = int(samples.tensors["mask"].sum())
        return {
            "perplexity": Statistic(stacked[counted], corpus_perplexity, seed_index[counted]),
            "entropy_nats": Statistic(samples.tensors["entropies"][:, None], seed_index=seed_index),
            "scored_tokens": Value(float(stacked[:, 1].sum())),
            "tokens_per_sample": Value(tokens / len(stacked)),
            **({"tokens_per_second": Value(tokens / samples.seconds)} if samples.seconds else {}),
        }

    return Measure(
        values,
        take,
        caption=f"Perplexity under {study.scorer.name}, 95 % bootstrap intervals over samples; entropy in nats a "
        "sample, on the scored tokens; tokens: a sample's, up to its end; NFE counts the passes of all networks",
    )


def comparison(study: "TextStudy") -> Measure | None:
    """Share of the held-out text's tokens, up to its end, that stand at the same place of the sample: ``accuracy`` of
    those that are written, and ``kept`` of the given ones, 1 for every sampler that holds what it is given."""
    real = study.real
    if real.given is None:
        return None
    known, given = real.held_out, real.given

    def share(rows: Tensor) -> Tensor:  # (..., N, 2) to (...)
        matches, total = rows.sum(-2).unbind(-1)
        return matches / total

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        ids, mask, is_given = known.ids[batch.rows], known.mask[batch.rows], given[batch.rows]
        same = (samples.tensors["ids"] == ids) & samples.tensors["text"] & mask
        counts = [part.sum(1) for written in (~is_given, is_given) for part in (same & written, mask & written)]
        return {"matches": torch.stack(counts, dim=1).double()}

    def values(setting: Setting, samples: Samples) -> Values:
        written, held = samples.tensors["matches"].split(2, dim=1)
        kept, given = held.sum(0).tolist()
        return {
            "accuracy": Statistic(written, share, samples.tensors["seed_index"]),
            "kept": Value(kept / given if given else None),
        }

    return Measure(
        values,
        take,
        {"given": real.given_rule},
        f"given: {real.given_rule}; all other figures are of the tokens that are written, the perplexity given what "
        "stands before them; accuracy: share of them that are held-out text's own",
        {"accuracy": Column("accuracy", ".3f", interval=True), "kept": Column("given kept", ".3f")},
    )


def answers(study: "TextStudy") -> Measure | None:
    """Exact match and ROUGE-L of answers to held-out prompts; ``UserError`` where its package is not installed.

    Texts are compared without white space around them. ROUGE-L is the F-measure of the package rouge-score, without
    stemming (Lin 2004, ROUGE: a package for automatic evaluation of summaries, section 3.1).
    """
    if study.real.given is None or study.real.given_rule != PROMPTS:
        return None
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError(f"ROUGE-L needs the package rouge-score ({error}): pip install 'fewstep[rouge]'") from None
    scorer, tokenizer, real = RougeScorer(["rougeL"]), study.bundle.tokenizer, study.real
    expected = texts_of(tokenizer, real.held_out.ids, real.held_out.mask & ~study.real.given)

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        written = texts_of(tokenizer, samples.tensors["ids"], samples.tensors["mask"])
        pairs = list(zip(expected[batch.rows], written, strict=True))
        exact = [float(ours.strip() == theirs.strip()) for theirs, ours in pairs]
        overlap = [scorer.score(theirs, ours)["rougeL"].fmeasure for theirs, ours in pairs]
        return {"answers": torch.tensor([exact, overlap], dtype=torch.float64).T}

    def values(setting: Setting, samples: Samples) -> Values:
        columns = samples.tensors["answers"].split(1, dim=1)
        names = ("exact_match", "rouge_l")
        return {n: Statistic(c, seed_index=samples.tensors["seed_index"]) for n, c in zip(names, columns, strict=True)}

    return Measure(
        values,
        take,
        {"answers": {"rouge_score": version("rouge-score")}},
        "exact: share of answers that are held-out text's own; ROUGE-L: their longest common subsequence of words",
        {
            "exact_match": Column("exact", ".3f", interval=True),
            "rouge_l": Column("ROUGE-L", ".3f", interval=True),
        },
    )


def repetition(study: "TextStudy") -> Measure:
    """Distinct and repeated n-grams, on the model's own tokens."""

    def values(setting: Setting, samples: Samples) -> Values:
        ids, mask = samples.tensors["ids"], samples.tensors["mask"]
        return {
            "distinct_2": Value(distinct_n(ids, 2, mask)),
            "repeated_4grams": Value(repeated_ngrams(ids, REPEATED, mask)),
        }

    return Measure(values, take_tokens, caption="rep-4: 4-grams that a sample repeats")


def copies(study: "TextStudy") -> Measure:
    """Pieces of the train text in the samples."""
    longest = max(study.bundle.identity.block_size, MEMORISED)

    def values(setting: Setting, samples: Samples) -> Values:
        ids, mask = samples.tensors["ids"], samples.tensors["mask"]
        lengths = match_lengths(study.real.train, ids, mask, max_length=longest)
        return {
            "longest_copy_tokens": Value(float(lengths.max())),
            "memorised_8grams": Value(memorised_share(lengths, MEMORISED, mask)),
        }

    return Measure(
        values,
        take_tokens,
        caption="copy: longest piece of train text in any sample, tokens; mem-8: 8-grams that the train text holds",
    )


def late_flips(study: "TextStudy") -> Measure:
    """Share of tokens that change between the last two predictions, on the parallel readout."""

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        return {name: value for name, value in samples.tensors.items() if name == "late_flips"}

    def values(setting: Setting, samples: Samples) -> Values:
        flips = samples.tensors.get("late_flips")
        return {} if flips is None else {"late_flip_rate": Statistic(flips[:, None])}

    return Measure(values, take)


def cci(study: "TextStudy") -> Measure | None:
    """The head's CCI on the first ``cci_examples`` samples of the first seed, blurred as the head blurs its input.

    Of texts that are partly given, over the tokens that are written, with the others given.
    """
    if not study.cci_examples:
        return None

    def head_of(setting: Setting) -> CommitmentHead | None:
        if "readout" not in setting:
            return None
        head = study.bundle.open_readout(resolve(READOUTS, str(setting["readout"]), "readout"))
        return head if isinstance(head, CommitmentHead) else None

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        count, known = study.cci_examples - batch.first, known_tokens(study.known, batch)
        if batch.seed_index or count <= 0 or head_of(setting) is None or "x_1" not in samples.tensors:
            return {}
        given = {} if known is None else {"cci_ids": known.ids, "cci_known": known.mask}
        return {name: value[:count].clone() for name, value in {"cci_z": samples.tensors["x_1"], **given}.items()}

    def values(setting: Setting, samples: Samples) -> Values:
        head = head_of(setting)
        if head is None or "cci_z" not in samples.tensors:
            return {}
        device = next(head.parameters()).device
        names = ("cci_z", "cci_ids", "cci_known")
        z, *given = (samples.tensors[name].to(device) for name in names if name in samples.tensors)
        conditionals = HeadConditionals(head, head.trust_level, KnownTokens(*given) if given else None)
        estimate = cci_as_read(conditionals, z, noise_source(study.seeds[0], "cci"))["cci"]
        return {"cci": Value(estimate.value, estimate.interval)}

    return Measure(values, take, protocol={"cci_examples": study.cci_examples})


def rms(study: "TextStudy") -> Measure | None:
    """Rms of the sampled latents x_1 over that of held-out text's: below 1 a sampler is colder than the data."""
    if study.bundle.autoencoder is None or study.known is not None:  # given latents are the data's
        return None
    device, squares = study.bundle.device, []
    with torch.no_grad():
        drawn, real = bool(study.bundle.identity.length_counts), study.real.held_out
        for ids, mask in zip(real.ids.to(device).split(AT_ONCE), real.mask.to(device).split(AT_ONCE), strict=True):
            encoded = study.bundle.encoder().encode(ids, mask if drawn else torch.ones_like(mask))
            squares.append(encoded.z[encoded.mask].double().square().flatten().cpu())
    expected = float(torch.cat(squares).mean())

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        x_1 = samples.tensors.get("x_1")
        return {} if x_1 is None else {"mean_square": masked_mean(x_1.double().square().mean(-1), real_positions(x_1))}

    def values(setting: Setting, samples: Samples) -> Values:
        squares = samples.tensors.get("mean_square")
        if squares is None:
            return {}
        return {"rms_ratio": Statistic(squares[:, None] / expected, lambda rows: rows.mean((-2, -1)).sqrt())}

    return Measure(values, take, caption="rms / data: rms of the sampled latents over that of held-out text's")


def mauve(study: "TextStudy") -> Measure | None:
    """MAUVE against as much held-out text, by the scorer's features.

    Held-out text itself is compared with other held-out text, if it is long enough. Raises ``UserError`` for fewer
    than 2 texts, and where the package is not installed.
    """
    if not study.mauve:
        return None
    package, real, tokenizer = mauve_package_version(), study.real, study.bundle.tokenizer
    if len(real.held_out.ids) < 2:
        raise UserError(f"MAUVE of {len(real.held_out.ids)} text: expected at least 2 (papers take thousands)")

    def features(ids: Tensor, mask: Tensor) -> Tensor:
        return study.scorer.features(texts_of(tokenizer, ids, mask), ids, mask)

    @cache
    def reference(is_real: bool) -> Tensor | None:
        tokens = real.other if is_real else real.held_out
        return None if tokens is None else features(tokens.ids, tokens.mask)

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        return {"features": features(samples.tensors["ids"], samples.tensors["text"])}

    def values(setting: Setting, samples: Samples) -> Values:
        theirs = reference(setting["name"] == HELD_OUT)
        return {"mauve": Value(None if theirs is None else mauve_score(theirs, samples.tensors["features"]))}

    protocol = {
        "mauve_features": "last hidden state of the scorer at the last token",
        "mauve_scaling": MAUVE_SCALING,
        "mauve_seed": MAUVE_SEED,
        "mauve_text": package,
    }
    return Measure(values, take, protocol, "MAUVE: against as much held-out text, by states of the scorer")


LAWS = {"grammar": "fewstep.lab.theory.grammar_measure.grammar_measure"}
"""Sources whose law is known exactly, and the dotted path of the measure that judges samples by it."""


def law(study: "TextStudy") -> Measure | None:
    """What the exact law of the text says of the samples, where it is known."""
    path = LAWS.get(study.real.source.partition(":")[0])
    return None if path is None else import_attribute(path, "measure")(study)


MEASURES: dict[str, Callable[["TextStudy"], Measure | None]] = {
    "scores": scores,
    "given": comparison,
    "answers": answers,
    "repetition": repetition,
    "copies": copies,
    "late_flips": late_flips,
    "cci": cci,
    "rms": rms,
    "mauve": mauve,
    "law": law,
}
"""Measures of text by name: functions of a study, or None from those that do not apply to it."""
