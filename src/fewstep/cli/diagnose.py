"""``fewstep diagnose``: how sharp a model's readout is, and where its tokens are decided."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.adapter_options import adapter_name, add_adapter_options, check_adapter_options, diagnose_adapter
from fewstep.cli.arguments import OneLineParser, at_least_one, comma_parts
from fewstep.cli.device import pick_device
from fewstep.cli.edge import first_speaks
from fewstep.cli.model_text import corpus_of, packed_blocks
from fewstep.cli.output import check_free, new_text_file
from fewstep.cli.progress import ProgressBar
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.bundle import ModelBundle
    from fewstep.data import PreparedCorpus
    from fewstep.evaluation import Diagnosis
    from fewstep.evaluation.processes import Processes

JSON_FILE = "diagnostics.json"
Tell = Callable[[int, int, str], None]
FOLDER, PICTURES = "diagnosis", "pictures"


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = OneLineParser("fewstep diagnose", "Measure readout sharpness, commitment, tube and stiffness of a model.")
    result.add_argument(
        "path", help="a model folder or a .ckpt file, of text or of images; with --adapter, what that says"
    )
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
        "--out",
        type=Path,
        help="folder for the table and the pictures; left out: diagnosis/ beside the model, with --adapter "
        "./diagnosis-NAME",
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
    add_adapter_options(result)
    return result


def main(argv: list[str]) -> int:
    """Measure as ``argv`` says and return the exit code. Raises ``UserError`` for whatever a user can mend.

    Several processes (``torchrun`` or any other start of them) share the measurements; the first alone speaks.
    """
    return first_speaks(lambda: run(parser().parse_args(argv), argv))


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """The command itself; ``argv`` is what its provenance names."""
    from fewstep.evaluation.processes import Processes

    check_adapter_options(args)
    only = None if args.only is None else comma_parts(args.only, "only")
    folder = default_folder(args) if args.out is None else args.out.expanduser()
    check_free(folder / JSON_FILE, overwrite=args.overwrite)
    check_writable(folder)
    with Processes.join() as processes:
        if not processes.is_first:
            diagnose(args, only, None, processes)
            return 0
        with ProgressBar("diagnosing", "measurement") as progress:
            diagnosis = diagnose(args, only, progress, processes)
    diagnosis = replace(diagnosis, provenance=provenance("diagnose", argv))
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


def default_folder(args: argparse.Namespace) -> Path:
    """Beside the model: a model folder holds nothing but the model. In the current folder for what is not ours."""
    if args.adapter is not None:
        return Path(f"{FOLDER}-{adapter_name(args.path)}")
    return Path(args.path).expanduser().resolve().parent / FOLDER


def diagnose(
    args: argparse.Namespace, only: list[str] | None, progress: Tell | None, processes: "Processes"
) -> "Diagnosis":
    """Load the model and measure it, text or images, ours or another's."""
    from fewstep.model import kind_of

    if args.adapter is not None:
        return diagnose_adapter(args, only, progress, processes)
    return KINDS[kind_of(args.path)](args, only, progress, processes)


def diagnose_text_model(
    args: argparse.Namespace, only: list[str] | None, progress: Tell | None, processes: "Processes"
) -> "Diagnosis":
    """A text model on the held-out part of its text."""
    from fewstep.bundle import ModelBundle
    from fewstep.evaluation import diagnose_text, make_subject
    from fewstep.pipeline import TextGenerator

    bundle = ModelBundle.from_pretrained(args.path).to(pick_device(args.device))
    corpus = own_corpus(bundle, args)
    tokens = packed_blocks(corpus, args.examples)
    subject = make_subject(
        TextGenerator(bundle), tokens, num_examples=args.examples, num_positions=args.positions, seed=args.seed
    )
    data = {"source": args.source or bundle.identity.source, "fingerprint": corpus.fingerprint}
    return diagnose_text(subject, args.path, only=only, progress=progress, processes=processes, data=data)


def own_corpus(bundle: "ModelBundle", args: argparse.Namespace) -> "PreparedCorpus":
    """The text that the model was trained on, or the one asked for, in its tokens."""
    return corpus_of(
        bundle,
        source=args.source,
        text_field=args.text_field,
        max_documents=args.max_documents,
        cache_dir=args.cache_dir,
    )


def diagnose_image_model(
    args: argparse.Namespace, only: list[str] | None, progress: Tell | None, processes: "Processes"
) -> "Diagnosis":
    """The image control on held-out images."""
    from fewstep.evaluation import diagnose_images, make_image_subject
    from fewstep.model import SavedModel

    model = SavedModel.from_pretrained(args.path, kind="images").to(pick_device(args.device))
    subject = make_image_subject(model, num_examples=args.examples, seed=args.seed)
    data = {"source": model.identity.source, **model.identity.source_config}
    return diagnose_images(subject, args.path, only=only, progress=progress, processes=processes, data=data)


KINDS: dict[str, Callable[[argparse.Namespace, list[str] | None, Tell | None, "Processes"], Any]] = {
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
