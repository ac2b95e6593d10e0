"""``fewstep theory --latents MODEL``: few steps of the exact denoiser over a saved model's own latents."""

import argparse
from pathlib import Path
from typing import Any

from fewstep.cli.arguments import OneLineParser, at_least_one
from fewstep.cli.device import pick_device
from fewstep.cli.evaluate import tell_torn
from fewstep.cli.model_text import corpus_of
from fewstep.errors import UserError
from fewstep.provenance import provenance

ROWS_FILE, TABLE_FILE, PICTURE_FILE = "rows.jsonl", "table.md", "wrong_tokens.png"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this curve, for the parser of a command that has ``--out`` and ``--seed``."""
    parser.add_argument("--latents", metavar="MODEL", help="a model folder or a .ckpt file: study its train latents")
    parser.add_argument("--num_latents", type=at_least_one, default=16384, help="of them (default: %(default)s)")
    parser.add_argument("--samples", type=at_least_one, default=256, help="samples a row (default: %(default)s)")
    parser.add_argument("--max_rows", type=at_least_one, help="stop after so many new rows; the next call goes on")
    parser.add_argument("--source", help="the text; left out: what the model was trained on")
    parser.add_argument("--text_field", default="text", help="field that holds the text (default: %(default)s)")
    parser.add_argument("--max_documents", type=at_least_one, help="as in training")
    parser.add_argument("--cache_dir", default="~/.cache/fewstep", help="folder for prepared text")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")


def run(args: argparse.Namespace, folder: Path, made_with: dict[str, Any]) -> int:
    """Make the rows that ``folder`` lacks, then its table and picture; returns the exit code.

    ``made_with``: provenance of the rows. A stopped run goes on where it stopped. Raises ``UserError`` for a model, a
    text or a folder that will not do.
    """
    from fewstep.bundle import ModelBundle
    from fewstep.evaluation.exact import train_blocks, train_latents
    from fewstep.evaluation.exact_picture import exact_picture
    from fewstep.evaluation.exact_rows import ExactRow, table_of
    from fewstep.evaluation.exact_study import ExactStudy, StudySettings
    from fewstep.evaluation.row_file import RowFile
    from fewstep.evaluation.sweep import model_digest
    from fewstep.report import write_picture

    bundle = ModelBundle.from_pretrained(args.latents).to(pick_device(args.device))
    bundle.require("autoencoder", "readout", source=str(args.latents))
    corpus = corpus_of(
        bundle,
        source=args.source,
        text_field=args.text_field,
        max_documents=args.max_documents,
        cache_dir=args.cache_dir,
    )
    latents = train_latents(bundle, train_blocks(corpus.train, args.num_latents))
    settings = StudySettings(num_samples=args.samples, cap_samples=min(64, args.samples), seed=args.seed)
    study = ExactStudy(bundle, latents, settings, model_digest(bundle), made_with)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another folder by --out") from None
    file = RowFile(folder / ROWS_FILE, ExactRow)
    tell_torn(file)
    rows = file.read()
    for new, row in enumerate(study.rows(rows), 1):
        file.append(row)
        print(f"{row.label()}: {100 * row.wrong_share:.2f} % wrong, distance {row.distance:.2f}", flush=True)
        if new == args.max_rows:
            break
    owned = [row for row in file.read() if study.owns(row)]
    table = table_of(owned)
    (folder / TABLE_FILE).write_text(table, encoding="utf-8")
    print(f"{table}\ntable    {folder / TABLE_FILE}")
    if (picture := exact_picture(owned)) is not None:
        write_picture(picture, folder / PICTURE_FILE)
        print(f"picture  {folder / PICTURE_FILE}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of this curve alone."""
    result = OneLineParser("fewstep theory", "Few steps of the exact denoiser over a saved model's own latents.")
    result.add_argument("--out", type=Path, default=Path("runs/theory"), help="folder of everything")
    result.add_argument("--seed", type=int, default=0, help="of the samples' noise (default: %(default)s)")
    add_options(result)
    return result


def main(argv: list[str]) -> int:
    """Make this curve alone, as ``argv`` says; returns the exit code. Raises ``UserError`` without a model."""
    args = parser().parse_args(argv)
    if args.latents is None:
        raise UserError("no model given: name one by --latents MODEL")
    return run(args, args.out.expanduser() / "latents", provenance("theory", argv))
