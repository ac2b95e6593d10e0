"""``fewstep theory --latents MODEL``: few steps of the exact denoiser over a saved model's own latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from fewstep.cli.common import DeviceOptions, TextOptions, corpus_of
from fewstep.cli.output import make_folder, write_text
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError
from fewstep.provenance import provenance

ROWS_FILE, TABLE_FILE, PICTURE_FILE = "rows.jsonl", "table.md", "wrong_tokens.png"


@dataclass(kw_only=True)
class LatentsOptions(TextOptions, DeviceOptions):
    """The exact denoiser over a saved model's own latents.

    Args:
        latents: a model folder or a .ckpt file, whose train latents are studied.
        num_latents: number of latents.
        samples: samples per row.
        max_rows: stop after so many new rows; the next call resumes there.
        seed: of all random numbers.
        out: folder of everything.
    """

    latents: str | None = None
    num_latents: PositiveInt = 16384
    samples: PositiveInt = 256
    max_rows: PositiveInt | None = None
    seed: int = 0
    out: Path = Path("runs/theory")


def run(options: LatentsOptions, model: str, folder: Path, recipe: dict[str, Any]) -> int:
    """Compute the rows of ``model`` that ``folder`` lacks, then its table and picture; returns the exit code.

    ``recipe``: provenance of the rows. An interrupted run resumes.
    """
    from fewstep.evaluation.pictures import write_picture
    from fewstep.evaluation.row_file import RowFile
    from fewstep.evaluation.sweep import model_digest
    from fewstep.lab.theory.exact import train_blocks, train_latents
    from fewstep.lab.theory.exact_picture import exact_picture
    from fewstep.lab.theory.exact_rows import ExactRow, table_of
    from fewstep.lab.theory.exact_study import ExactStudy, StudySettings
    from fewstep.model import SavedModel

    bundle = SavedModel.from_pretrained(model, allow=options.allowed, kind="text").to(options.pick_device())
    bundle.require("autoencoder", "readout", source=model)
    corpus = corpus_of(bundle, options)
    latents = train_latents(bundle, train_blocks(corpus.train, options.num_latents))
    settings = StudySettings(num_samples=options.samples, cap_samples=min(64, options.samples), seed=options.seed)
    study = ExactStudy(bundle, latents, settings, model_digest(bundle), recipe)
    make_folder(folder)
    file = RowFile(folder / ROWS_FILE, ExactRow)
    rows = file.read()
    for new, row in enumerate(study.rows(rows), 1):
        file.append(row)
        print(f"{row.label()}: {100 * row.wrong_share:.2f} % wrong, distance {row.distance:.2f}", flush=True)
        if new == options.max_rows:
            break
    owned = [row for row in file.read() if study.owns(row)]
    table = table_of(owned)
    write_text(folder / TABLE_FILE, table)
    print(f"{table}\ntable    {folder / TABLE_FILE}")
    if (picture := exact_picture(owned)) is not None:
        write_picture(picture, folder / PICTURE_FILE)
        print(f"picture  {folder / PICTURE_FILE}")
    return 0


def main(argv: list[str]) -> int:
    """Compute this curve alone, as ``argv`` says; returns the exit code."""
    options = parse_options("theory", LatentsOptions, argv)
    if options.latents is None:
        raise UserError("no model given: name one by --latents MODEL")
    return run(options, options.latents, options.out / "latents", provenance("theory", argv))
