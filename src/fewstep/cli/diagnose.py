"""``fewstep diagnose``: how sharp a model's readout is, and where its tokens are decided."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import OneLineParser, at_least_one, comma_parts
from fewstep.cli.device import pick_device
from fewstep.cli.model_text import corpus_of, packed_blocks
from fewstep.cli.output import check_free, new_text_file
from fewstep.cli.progress import ProgressBar
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.bundle import ModelBundle
    from fewstep.evaluation import Diagnosis
    from fewstep.types import TokenBatch

JSON_FILE = "diagnostics.json"
FOLDER, PICTURES = "diagnosis", "pictures"


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = OneLineParser("fewstep diagnose", "Measure readout sharpness, commitment, tube and stiffness of a model.")
    result.add_argument("path", help="a model folder or a .ckpt file, of text or of images")
    result.add_argument(
        "--examples", type=at_least_one, default=64, help="held-out blocks or images (default: %(default)s)"
    )
    result.add_argument(
        "--positions", type=at_least_one, default=4, help="tokens looked at in each block (default: %(default)s)"
    )
    result.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same figures (default: %(default)s)"
    )
    result.add_argument("--only", help="names of measurements with commas between, such as dabi,cci; left out: all")
    result.add_argument(
        "--out", type=Path, help="folder for the table and the pictures; left out: diagnosis/ beside the model"
    )
    result.add_argument("--overwrite", action="store_true", help="replace an earlier diagnosis in that folder")
    result.add_argument(
        "--source", help="the text to measure on; left out: the held-out part of what it was trained on"
    )
    result.add_argument("--text_field", default="text", help="field that holds the text (default: %(default)s)")
    result.add_argument(
        "--max_documents", type=at_least_one, help="as in training, so that held-out text is held out here too"
    )
    result.add_argument("--cache_dir", default="~/.cache/fewstep", help="folder for prepared text")
    result.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the model runs (default: %(default)s)"
    )
    return result


def main(argv: list[str]) -> int:
    """Measure as ``argv`` says and return the exit code. Raises ``UserError`` for whatever a user can mend."""
    args = parser().parse_args(argv)
    only = None if args.only is None else comma_parts(args.only, "only")
    folder = default_folder(Path(args.path)) if args.out is None else args.out.expanduser()
    check_free(folder / JSON_FILE, overwrite=args.overwrite)
    check_writable(folder)
    with ProgressBar("diagnosing", "measurement") as progress:
        diagnosis = replace(diagnose(args, only, progress), provenance=provenance("diagnose", argv))
    print(diagnosis.to_text())
    write(diagnosis, folder, overwrite=args.overwrite)
    print(f"\ntable     {folder / JSON_FILE}\npictures  {folder / PICTURES}/*.png")
    return 0


def check_writable(folder: Path) -> None:
    """Raise ``UserError`` where the results cannot be put into ``folder``: before the work, not after it."""
    for place in (folder.resolve(), folder.resolve() / PICTURES):
        nearest = next(one for one in (place, *place.parents) if one.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            why = "is closed to writing" if nearest.is_dir() else "is no folder"
            raise UserError(f"cannot write into {folder}: {nearest} {why}; choose another folder by --out")


def default_folder(path: Path) -> Path:
    """Beside the model: a model folder holds nothing but the model."""
    return path.expanduser().resolve().parent / FOLDER


def diagnose(
    args: argparse.Namespace, only: list[str] | None, progress: Callable[[int, int, str], None]
) -> "Diagnosis":
    """Load the model and measure it, text or images."""
    from fewstep.storage import kind_of

    return KINDS[kind_of(args.path)](args, only, progress)


def diagnose_text_model(
    args: argparse.Namespace, only: list[str] | None, progress: Callable[[int, int, str], None]
) -> "Diagnosis":
    """A text model on the held-out part of its text."""
    from fewstep.bundle import ModelBundle
    from fewstep.evaluation import diagnose_text, make_subject
    from fewstep.pipeline import TextGenerator

    bundle = ModelBundle.from_pretrained(args.path).to(pick_device(args.device))
    tokens = held_out_text(bundle, args)
    subject = make_subject(
        TextGenerator(bundle), tokens, num_examples=args.examples, num_positions=args.positions, seed=args.seed
    )
    return diagnose_text(subject, args.path, only=only, progress=progress)


def held_out_text(bundle: "ModelBundle", args: argparse.Namespace) -> "TokenBatch":
    """Held-out blocks, spread evenly: as many as asked for, or all there are."""
    corpus = corpus_of(
        bundle,
        source=args.source,
        text_field=args.text_field,
        max_documents=args.max_documents,
        cache_dir=args.cache_dir,
    )
    return packed_blocks(corpus, args.examples)


def diagnose_image_model(
    args: argparse.Namespace, only: list[str] | None, progress: Callable[[int, int, str], None]
) -> "Diagnosis":
    """The image control on held-out images."""
    from fewstep.evaluation import diagnose_images, make_image_subject
    from fewstep.image_bundle import ImageModel

    model = ImageModel.from_pretrained(args.path).to(pick_device(args.device))
    subject = make_image_subject(model, num_examples=args.examples, seed=args.seed)
    return diagnose_images(subject, args.path, only=only, progress=progress)


KINDS: dict[str, Callable[[argparse.Namespace, list[str] | None, Callable[[int, int, str], None]], Any]] = {
    "text": diagnose_text_model,
    "images": diagnose_image_model,
}


def write(diagnosis: "Diagnosis", folder: Path, *, overwrite: bool) -> None:
    """The table as JSON and every picture. Raises ``UserError`` where the folder cannot be written."""
    from fewstep.report import write_picture

    try:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another folder by --out") from None
    with new_text_file(folder / JSON_FILE, overwrite=overwrite) as write_lines:
        write_lines([diagnosis.to_json()])
    for old in (folder / PICTURES).glob("*.png"):  # of the diagnosis that has just been replaced
        old.unlink()
    for name, picture in diagnosis.pictures().items():
        write_picture(picture, folder / PICTURES / f"{name}.png")
