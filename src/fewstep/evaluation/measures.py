"""What is measured on sampled text. A new measure is one function in :data:`MEASURES`. N samples, L tokens."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.adapters import HeadConditionals, cci_as_read
from fewstep.evaluation.given import answers, comparison
from fewstep.evaluation.rows import HELD_OUT, Setting, Value
from fewstep.evaluation.scorers import corpus_perplexity, texts_of
from fewstep.evaluation.subject import noise_source
from fewstep.evaluation.sweep import Batch, Measure, Samples, Statistic
from fewstep.metrics.text import (
    MAUVE_SCALING,
    MAUVE_SEED,
    distinct_n,
    longest_copies,
    match_lengths,
    mauve_package_version,
    mauve_score,
    memorised_share,
    repeated_ngrams,
)
from fewstep.readouts import READOUTS, CommitmentHead
from fewstep.registry import import_attribute, resolve
from fewstep.types import KnownTokens, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from fewstep.evaluation.text_plan import TextStudy

MEMORISED, REPEATED = 8, 4
"""Lengths of the n-grams that are looked up in the train text, and of those counted within a sample."""
AT_ONCE = 64

Factory = Callable[["TextStudy"], Measure | None]
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

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        ids, text, mask = take_tokens(setting, batch, samples).values()
        tokenizer = study.bundle.tokenizer
        spans = {} if study.real.given is None else {"spans": written_spans(tokenizer, ids, text, mask)}
        scored = study.scorer.score(texts_of(tokenizer, ids, text), ids, mask, **spans)
        return {"scores": scored.stacked(), "entropies": scored.entropies_nats, "ids": ids, "text": text, "mask": mask}

    def values(setting: Setting, samples: Samples) -> Values:
        stacked, seed_index = samples.tensors["scores"], samples.tensors["seed_index"]
        counted = stacked[:, 1] > 0  # a resample of unscored samples alone would have no perplexity
        tokens = int(samples.tensors["mask"].sum())
        speed = {} if not samples.seconds else {"tokens_per_second": tokens / samples.seconds}
        return {
            "perplexity": Statistic(stacked[counted], corpus_perplexity, seed_index[counted]),
            "entropy_nats": Statistic(samples.tensors["entropies"][:, None], seed_index=seed_index),
            "scored_tokens": Value(float(stacked[:, 1].sum())),
            "tokens_per_sample": Value(tokens / len(stacked)),
            **{name: Value(value) for name, value in speed.items()},
        }

    return Measure(
        values,
        take,
        caption=f"Perplexity under {study.scorer.name}, 95 % bootstrap intervals over samples; entropy in nats a "
        "sample, on the scored tokens; tokens: a sample's, up to its end; NFE counts the passes of all networks",
    )


def repetition(study: "TextStudy") -> Measure:
    """Distinct and repeated n-grams, on the model's own tokens."""

    def values(setting: Setting, samples: Samples) -> Values:
        ids, mask = samples.tensors["ids"], samples.tensors["mask"]
        return {
            "distinct_2": Value(_where_counted(2, distinct_n, ids, mask)),
            "repeated_4grams": Value(_where_counted(REPEATED, repeated_ngrams, ids, mask)),
        }

    return Measure(values, take_tokens, caption="rep-4: 4-grams that a sample repeats")


def copies(study: "TextStudy") -> Measure:
    """Pieces of the train text in the samples."""
    longest = max(study.bundle.identity.block_size, MEMORISED)

    def values(setting: Setting, samples: Samples) -> Values:
        ids, mask = samples.tensors["ids"], samples.tensors["mask"]
        lengths = match_lengths(study.real.train, ids, mask, max_length=longest)
        return {
            "longest_copy_tokens": Value(float(longest_copies(lengths).max())),
            "memorised_8grams": Value(_where_counted(MEMORISED, memorised_share, lengths, mask)),
        }

    return Measure(
        values,
        take_tokens,
        caption="copy: longest piece of train text in any sample, tokens; mem-8: 8-grams that the train text holds",
    )


def late_flips(study: "TextStudy") -> Measure:
    """Share of tokens that change between the last two predictions, on the parallel readout."""

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        return {name: samples.tensors[name] for name in ("late_flips",) if name in samples.tensors}

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
        count = study.cci_examples - batch.first
        if batch.seed_index or count <= 0 or head_of(setting) is None or "x_1" not in samples.tensors:
            return {}
        taken = {"cci_z": samples.tensors["x_1"]}
        if study.known is not None:
            known = study.known(batch)
            taken |= {"cci_ids": known.ids, "cci_known": known.mask}
        return {name: value[:count].clone() for name, value in taken.items()}

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
    if study.bundle.autoencoder is None or study.real.given is not None:  # given latents are the data's
        return None
    expected = _mean_square(study)

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        if "x_1" not in samples.tensors:
            return {}
        return {"mean_square": samples.tensors["x_1"].double().square().mean((1, 2))}

    def values(setting: Setting, samples: Samples) -> Values:
        squares = samples.tensors.get("mean_square")
        if squares is None:
            return {}
        return {"rms_ratio": Statistic(squares[:, None] / expected, lambda rows: rows.mean((-2, -1)).sqrt())}

    return Measure(values, take, caption="rms / data: rms of the sampled latents over that of held-out text's")


@torch.no_grad()
def _mean_square(study: "TextStudy") -> float:
    """Of the latents of held-out text."""
    encoder, tokens = study.bundle.encoder(), study.real.held_out
    device = next(study.bundle.parts()["autoencoder"].parameters()).device
    squares = []
    for ids in tokens.ids.to(device).split(AT_ONCE):
        encoded = encoder.encode(ids, torch.ones_like(ids, dtype=torch.bool))
        squares.append(encoded.z[encoded.mask].double().square().flatten().cpu())
    return float(torch.cat(squares).mean())


def mauve(study: "TextStudy") -> Measure | None:
    """MAUVE against as much held-out text, by the scorer's features.

    Held-out text itself is compared with other held-out text, if it is long enough. Raises ``UserError`` for fewer
    than 2 texts, and where the package is not installed.
    """
    if not study.mauve:
        return None
    version, real, tokenizer = mauve_package_version(), study.real, study.bundle.tokenizer
    if len(real.held_out.ids) < 2:
        raise UserError(f"MAUVE of {len(real.held_out.ids)} text: expected at least 2 (papers take thousands)")
    cached: dict[str, Tensor] = {}

    def features(ids: Tensor, mask: Tensor) -> Tensor:
        return study.scorer.features(texts_of(tokenizer, ids, mask), ids, mask)

    def reference(name: str, tokens: TokenBatch) -> Tensor:
        if name not in cached:
            cached[name] = features(tokens.ids, tokens.mask)
        return cached[name]

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        return {"features": features(samples.tensors["ids"], samples.tensors["text"])}

    def values(setting: Setting, samples: Samples) -> Values:
        ours = samples.tensors["features"]
        if setting["name"] != HELD_OUT:
            return {"mauve": Value(mauve_score(reference("real", real.held_out), ours))}
        return {"mauve": Value(None if real.other is None else mauve_score(reference("other", real.other), ours))}

    protocol = {
        "mauve_features": "last hidden state of the scorer at the last token",
        "mauve_scaling": MAUVE_SCALING,
        "mauve_seed": MAUVE_SEED,
        "mauve_text": version,
    }
    return Measure(values, take, protocol, "MAUVE: against as much held-out text, by states of the scorer")


LAWS = {"grammar": "fewstep.lab.theory.grammar_measure.grammar_measure"}
"""Sources whose law is known exactly, and the dotted path of the measure that judges samples by it."""


def law(study: "TextStudy") -> Measure | None:
    """What the exact law of the text says of the samples, where it is known."""
    path = LAWS.get(study.real.source.partition(":")[0])
    return None if path is None else import_attribute(path, "measure")(study)


MEASURES: dict[str, Factory] = {
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


def _where_counted(n: int, measure: Callable[..., Any], of: Tensor, mask: Tensor) -> float | None:
    """``measure(of, n, mask)``, or None where no sample has ``n`` counted tokens in a row."""
    if of.shape[1] < n or not bool(mask.unfold(1, n, 1).all(-1).any()):
        return None
    return float(measure(of, n, mask))
