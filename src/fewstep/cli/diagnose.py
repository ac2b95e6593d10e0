"""``fewstep diagnose``: how sharp a model's readout is, and where its tokens are decided."""

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from fewstep.cli.adapter_options import AdapterOptions, adapter_name, check_adapter_options, load_decoder
from fewstep.cli.common import DeviceOptions, TextOptions, corpus_of, folder_beside, packed_blocks
from fewstep.cli.main import rank_zero_errors
from fewstep.cli.output import check_free, check_writable, make_folder, new_text_file, progress_bar
from fewstep.cli.parser import comma_parts, parse_options
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.evaluation.diagnosis import Diagnosis
    from fewstep.model import SavedModel

JSON_FILE, FOLDER, PICTURES = "diagnostics.json", "diagnosis", "pictures"


@dataclass(kw_only=True)
class DiagnoseOptions(TextOptions, AdapterOptions, DeviceOptions):
    """Measure how sharp a model's readout is and where its tokens are decided.

    Args:
        model: a model folder or a .ckpt file, of text or of images; with --adapter, what that says.
        examples: held-out blocks or images.
        positions: tokens looked at in each block.
        seed: the same seed gives the same figures.
        only: measurements with commas between, such as dabi,cci, or dotted paths of your own; left out, all.
        out: folder for the table and the pictures; left out, diagnosis/ beside the model, with --adapter
            ./diagnosis-NAME.
        overwrite: replace an earlier diagnosis in that folder.
    """

    model: str
    examples: PositiveInt = 64
    positions: PositiveInt = 4
    seed: int = 0
    only: str | None = None
    out: Path | None = None
    overwrite: bool = False


def main(argv: list[str]) -> int:
    """Measure as ``argv`` says; returns the exit code. Several processes (``torchrun``) share the measurements."""
    return rank_zero_errors(lambda: run(parse_options("diagnose", DiagnoseOptions, argv), argv))


def run(options: DiagnoseOptions, argv: list[str]) -> int:
    """The command itself; ``argv`` is named by its provenance."""
    from fewstep.evaluation.processes import Processes

    check_adapter_options(options, text_given=options.source is not None)
    only = None if options.only is None else comma_parts(options.only, "only")
    folder = options.out or (
        folder_beside(options.model, FOLDER)
        if options.adapter is None
        else Path(f"{FOLDER}-{adapter_name(options.model)}")
    )
    check_free(folder / JSON_FILE, overwrite=options.overwrite)
    check_writable(folder, PICTURES)
    with Processes.join() as processes, progress_bar("diagnosing", "measurement") as progress:
        shared = {"only": only, "progress": progress if processes.is_first else None, "processes": processes}
        diagnosis = diagnose(options, shared)
        if not processes.is_first:
            return 0
    diagnosis = replace(diagnosis, provenance=provenance("diagnose", argv))
    write(diagnosis, folder, overwrite=options.overwrite)
    print(diagnosis.to_text())
    print(f"\ntable     {folder / JSON_FILE}\npictures  {folder / PICTURES}/*.png")
    return 0


def diagnose(options: DiagnoseOptions, shared: dict[str, Any]) -> "Diagnosis":
    """Load the model, of text or images, ours or another's, and measure it; ``shared`` goes to every diagnosis."""
    if options.adapter is not None:
        return diagnose_adapter(options, shared)
    from fewstep.model import SavedModel

    model = SavedModel.from_pretrained(options.model, allow=options.allowed).to(options.pick_device())
    return (diagnose_text_model if model.identity.kind == "text" else diagnose_image_model)(model, options, shared)


def diagnose_adapter(options: DiagnoseOptions, shared: dict[str, Any]) -> "Diagnosis":
    """Another's decoder."""
    from fewstep.lab.adapters.diagnosis import check_chosen, diagnose_decoder

    if options.adapter != "callable":  # whose kind is known after the call only
        check_chosen(shared["only"], images=options.adapter == "autoencoder-kl")
    decoder, data, packages = load_decoder(options)
    numbers = {"num_examples": options.examples, "num_positions": options.positions, "seed": options.seed}
    return diagnose_decoder(decoder, **numbers, data=data, packages=packages, **shared)


def diagnose_text_model(model: "SavedModel", options: DiagnoseOptions, shared: dict[str, Any]) -> "Diagnosis":
    """A text model on the held-out part of its text."""
    from fewstep.evaluation.diagnosis import diagnose_text
    from fewstep.evaluation.subject import make_subject
    from fewstep.pipeline import TextGenerator

    corpus = corpus_of(model, options)
    numbers = {"num_examples": options.examples, "num_positions": options.positions, "seed": options.seed}
    subject = make_subject(TextGenerator(model), packed_blocks(corpus, options.examples), **numbers)
    data = {"source": options.source or model.identity.source, "fingerprint": corpus.fingerprint}
    return diagnose_text(subject, options.model, data=data, **shared)


def diagnose_image_model(model: "SavedModel", options: DiagnoseOptions, shared: dict[str, Any]) -> "Diagnosis":
    """The image control on held-out images."""
    images = import_module("fewstep.lab.images.diagnosis")
    subject = images.make_image_subject(model, num_examples=options.examples, seed=options.seed)
    data = {"source": model.identity.source, **model.identity.source_config}
    return images.diagnose_images(subject, options.model, data=data, **shared)


def write(diagnosis: "Diagnosis", folder: Path, *, overwrite: bool) -> None:
    """The table as JSON and every picture."""
    from fewstep.evaluation.pictures import write_picture

    make_folder(folder / PICTURES)
    with new_text_file(folder / JSON_FILE, overwrite=overwrite) as write_lines:
        write_lines([diagnosis.to_json()])
    for old in (folder / PICTURES).glob("*.png"):  # of the diagnosis that has just been replaced
        old.unlink()
    for name, picture in diagnosis.pictures().items():
        write_picture(picture, folder / PICTURES / f"{name}.png")
