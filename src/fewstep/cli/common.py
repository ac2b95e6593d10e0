"""What several commands share: groups of options, the device, and the study of a model's text."""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from fewstep.cli.output import write_text
from fewstep.cli.parser import comma_numbers, comma_parts
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.data.corpus import PreparedCorpus
    from fewstep.evaluation.rows import Column, Row
    from fewstep.evaluation.text_plan import TextStudy
    from fewstep.model import SavedModel


@dataclass(kw_only=True)
class DeviceOptions:
    """Machine.

    Args:
        device: where models run; auto takes a GPU if there is one.
        allow: packages beside fewstep whose classes a saved model may have, with commas between; their code is run.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    allow: str = ""

    @property
    def allowed(self) -> list[str]:
        """The packages of ``allow``."""
        return [name for name in self.allow.split(",") if name]

    def pick_device(self) -> str:
        """The name of a torch device, a GPU of its own for each local rank. Raises ``UserError`` for a missing GPU."""
        import torch

        is_there = torch.cuda.is_available()
        if self.device == "cuda" and not is_there:
            raise UserError("device is cuda: PyTorch finds no CUDA GPU here; use --device cpu")
        if self.device == "cpu" or not is_there:
            return "cpu"
        local_rank = os.environ.get("LOCAL_RANK")
        return "cuda" if local_rank is None else f"cuda:{int(local_rank) % torch.cuda.device_count()}"


@dataclass(kw_only=True)
class TextOptions:
    """Real text.

    Args:
        source: the text; left out, what the model was trained on.
        text_field: field that holds the text; left out, as in training.
        prompt_field: field that holds the prompt of a text; left out, as in training.
        max_documents: as in training, so that held-out text is held out here too.
        cache_dir: folder for prepared text.
    """

    source: str | None = None
    text_field: str | None = None
    prompt_field: str | None = None
    max_documents: PositiveInt | None = None
    cache_dir: str = "~/.cache/fewstep"


@dataclass(kw_only=True)
class StudyOptions(TextOptions, DeviceOptions):
    """Scoring.

    Args:
        samples: texts or images per seed.
        seeds: number of seeds, from 0 on.
        scorer: run for the model's own language model, or a transformers folder or hub name.
        scorer_dtype: precision of a transformers scorer.
        cci_examples: samples on which CCI is measured, 0 for none.
        batch_size: samples generated at a time.
        matched_entropy: temperatures of the sweep from which the table at real text's entropy comes, of the noise for
            the parallel readout and of the tokens for the others; 1 alone for none.
    """

    samples: PositiveInt = 128
    seeds: PositiveInt = 3
    scorer: str = "run"
    scorer_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    cci_examples: NonNegativeInt = 8
    batch_size: PositiveInt = 64
    matched_entropy: list[float] | float | str = "0.8,1,1.2,1.4"

    def study(
        self, bundle: "SavedModel", *, mauve: bool = False, prompt_tokens: int = 0, infill_tokens: int = 0
    ) -> "TextStudy":
        """Scorer, real text and protocol for samples that are given ``prompt_tokens`` or all but ``infill_tokens``."""
        from fewstep.evaluation.scorers import RunScorer, Scorer
        from fewstep.evaluation.text_plan import TextStudy, real_text
        from fewstep.evaluation.transformers_scorer import TransformersScorer

        scorer: Scorer
        if self.scorer == "run":
            scorer = RunScorer(bundle.scorer(), bundle.tokenizer, batch_size=self.batch_size)
        else:
            scorer = TransformersScorer(self.scorer, dtype=self.scorer_dtype, device=self.pick_device())
        real = real_text(
            corpus_of(bundle, self),
            self.source or bundle.identity.source,
            self.samples * self.seeds,
            packed=bundle.identity.blocks == "packed",
            prompt_tokens=prompt_tokens,
            infill_tokens=infill_tokens,
        )
        seeds = tuple(range(self.seeds))
        return TextStudy(bundle, scorer, real, self.samples, seeds, self.batch_size, self.cci_examples, mauve)


def comma_rules(given: Sequence[float | str]) -> list[str]:
    """Rules of re-injection for several rows: numbers in their shortest form, the others as written, all checked.

    An item with a colon is one rule, whose numbers have commas; others are lists. Raises ``UserError``.
    """
    from fewstep.samplers import parse_rule

    rules: list[str] = []
    for item in map(str, given):
        rules += [item.strip()] if ":" in item else comma_parts(item, "reinjection")
    for rule in rules:
        try:
            parse_rule(rule)
        except ValueError as error:
            raise UserError(str(error)) from None
    return [f"{float(rule):g}" if rule.replace(".", "", 1).isdigit() else rule for rule in rules]


def sweep_temperatures(given: Sequence[float] | float | str) -> list[float]:
    """The temperatures of ``--matched_entropy``, rising, with 1 among them. Raises ``UserError``."""
    temperatures = comma_numbers(given, "matched_entropy", float)
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise UserError(f"--matched_entropy {given!r}: expected temperatures above 0, such as 0.8,1,1.2,1.4")
    return sorted({1.0, *temperatures})


def folder_beside(model: str, name: str) -> Path:
    """The default folder for results: beside the model, since a model folder holds nothing but the model."""
    return Path(model).resolve().parent / name


def corpus_of(bundle: "SavedModel", options: TextOptions) -> "PreparedCorpus":
    """The text of the options in blocks like those that the model was trained on."""
    from fewstep.data.corpus import prepare_corpus
    from fewstep.data.sources import CorpusSettings

    with tempfile.TemporaryDirectory() as folder:  # a checkpoint has no tokenizer folder to point at
        bundle.tokenizer.save_pretrained(folder)
        settings = CorpusSettings(
            source=options.source or bundle.identity.source,
            text_field=options.text_field or bundle.identity.text_field,
            prompt_field=options.prompt_field or bundle.identity.prompt_field,
            tokenizer=folder,
            block_size=bundle.identity.block_size,
            blocks=bundle.identity.blocks,
            max_documents=options.max_documents,
            cache_dir=options.cache_dir,
        )
        return prepare_corpus(settings)


def write_tables(
    rows: "Sequence[Row]", caption: str, columns: "Mapping[str, Column]", folder: Path, name: str = "table"
) -> "tuple[list[Row], str, str]":
    """Write the table, and if temperatures were swept the one at real text's entropy, as Markdown and CSV.

    Returns the rows of the first, and both tables as Markdown and as text for a terminal.
    """
    from fewstep.evaluation.columns import aligned_columns, markdown_table
    from fewstep.evaluation.matched import ENTROPY, MATCHED_CAPTION, MATCHED_COLUMNS, matched_rows
    from fewstep.evaluation.rows import at_usual_temperature, rows_csv, table_lines

    plain = [row for row in rows if at_usual_temperature(row.setting)]
    tables = [(table_lines(plain, columns), caption)]
    if matched := matched_rows(rows):
        bounds = matched[0].interval(ENTROPY)
        known = "which is not known" if bounds is None else f"{bounds.low:.2f} to {bounds.high:.2f}"
        caption = MATCHED_CAPTION.format(matched[0].value(ENTROPY), known)
        tables.append((table_lines(matched, MATCHED_COLUMNS), caption))
        write_text(folder / "matched.csv", rows_csv(matched))
    markdown = "\n".join(markdown_table(*table) for table in tables)
    write_text(folder / f"{name}.md", markdown)
    write_text(folder / f"{name}.csv", rows_csv(rows))
    return plain, markdown, "\n\n".join(f"{aligned_columns(lines, (0, 1, 2))}\n{text}" for lines, text in tables)
