"""``fewstep theory``: the theorems of arXiv:2606.30705 in closed form, and exact denoisers of real latents."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from fewstep.cli.common import DeviceOptions, TextOptions, corpus_of
from fewstep.cli.output import make_folder, new_text_file, progress_bar, write_text
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.diagnostics.result import Result

CURVES = {"flips": 40_000, "modes": 192, "dimension": 192, "hierarchy": 192, "coarea": 1_000_000, "surface": 1000}
"""Study of a theorem to examples per point."""
ROWS_FILE, TABLE_FILE, PICTURE_FILE = "rows.jsonl", "table.md", "wrong_tokens.png"


@dataclass(kw_only=True)
class TheoryOptions(TextOptions, DeviceOptions):
    """Study where few-step sampling fails in closed form: nothing is trained.

    Args:
        all: every study of a theorem of arXiv:2606.30705, down to --consistency.
        flips: Theorem 3, flip rate of the posterior-mean step against tube mass.
        modes: Theorem 5, peak stiffness over M modes where the dimension grows with log M.
        dimension: Theorem 6, peak stiffness over M modes in a fixed dimension.
        hierarchy: Theorem 7, peak stiffness of a step over the depth of a tree of modes.
        coarea: Theorem 17, boundary integral, growth of the tube, mean stiffness.
        surface: accuracy over depth K and a cap on stiffness.
        consistency: which re-injection rules reach the data's law with many steps, exact for Gaussian data.
        latents: a model folder or a .ckpt file, over whose train latents the exact denoiser is studied.
        num_latents: number of latents.
        samples: samples per row, with --latents.
        path: the path of the flow.
        effort: factor on the examples of each study.
        max_modes: largest M, of the sweeps over M.
        seed: of all random numbers.
        out: folder of everything.
        overwrite: repeat studies that are there already.
    """

    all: bool = False
    flips: bool = False
    modes: bool = False
    dimension: bool = False
    hierarchy: bool = False
    coarea: bool = False
    surface: bool = False
    consistency: bool = False
    latents: str | None = None
    num_latents: PositiveInt = 16384
    samples: PositiveInt = 256
    path: Literal["linear", "vp"] = "linear"
    effort: PositiveFloat = 1.0
    max_modes: PositiveInt = 100_000
    seed: int = 0
    out: Path = Path("runs/theory")
    overwrite: bool = False


def main(argv: list[str]) -> int:
    """Run the studies of ``argv`` that are not there yet; returns the exit code."""
    options = parse_options("theory", TheoryOptions, argv)
    studies = (*CURVES, "consistency")
    names = [name for name in studies if options.all or getattr(options, name)]
    if not names and options.latents is None:
        raise UserError(f"no study asked for: pass --all, or some of --{', --'.join(studies)}, --latents MODEL")
    if not math.isfinite(options.effort):
        raise UserError(f"--effort is {options.effort}: expected a finite number above 0")
    if options.max_modes < 1024:
        raise UserError(f"--max_modes is {options.max_modes}: expected at least 1024, for an exponent to show")
    make_folder(options.out)
    recipe = provenance("theory", argv)
    for name in names:
        write_curve(name, options, recipe)
    if names:
        print(f"\npictures and figures  {options.out}/*.png, *.json")
    if options.latents is not None:
        study_latents(options, options.latents, options.out / "latents", recipe)
    return 0


def write_curve(name: str, options: TheoryOptions, recipe: dict[str, Any]) -> None:
    """One study's picture and JSON file, unless they are there. Raises ``UserError`` for a file of other settings."""
    file = options.out / f"{name}.json"
    settings = {key: getattr(options, key) for key in ("path", "effort", "max_modes", "seed")}
    if file.exists() and not options.overwrite:
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            stored = "settings of no study of this command"
        if stored != settings:
            raise UserError(f"{file} was made with {stored}, not {settings}: choose another --out, or pass --overwrite")
        print(f"{name}: {file} is there already; --overwrite repeats it")
        return
    from fewstep.evaluation.pictures import write_picture

    with new_text_file(file, overwrite=options.overwrite) as write_lines:
        study = make_curve(name, options)
        picture = study.picture()
        assert picture is not None  # every study has axes and lines
        write_picture(picture, file.with_suffix(".png"))
        # Last: the JSON file says that the study is complete.
        result = {"settings": settings, **asdict(study), "provenance": recipe}
        write_lines([json.dumps(result, allow_nan=False), "\n"])
    print(f"{name}: {picture.title}")
    for row in study.rows:
        bounds = row.estimate.interval
        interval = "" if bounds is None else f"  [{bounds.low:.4g}, {bounds.high:.4g}]"
        print(f"  {row.name:<58} {row.estimate.value:9.4g}{interval}  {row.note}".rstrip(), flush=True)


def make_curve(name: str, options: TheoryOptions) -> "Result":
    """The study called ``name``, from a generator of its own: it does not depend on which others are made."""
    import torch

    from fewstep.lab.theory import theorems
    from fewstep.lab.theory.consistency import consistency_curve
    from fewstep.paths import linear_path, variance_preserving_path

    path = linear_path() if options.path == "linear" else variance_preserving_path()
    if name == "consistency":
        return consistency_curve(path)
    noise, num = torch.Generator().manual_seed(options.seed), max(2, round(CURVES[name] * options.effort))
    limit = {"max_modes": options.max_modes} if name in ("modes", "dimension") else {}
    return getattr(theorems, f"{name}_curve")(path, num, noise, **limit)


def study_latents(options: TheoryOptions, model: str, folder: Path, recipe: dict[str, Any]) -> None:
    """The rows of ``model`` that ``folder`` lacks, then its table and picture; an interrupted run resumes."""
    from fewstep.evaluation.pictures import write_picture
    from fewstep.evaluation.rows import RowFile
    from fewstep.evaluation.sweep import Sweep
    from fewstep.lab.theory.exact import ExactStudy, exact_picture, exact_table, train_blocks, train_latents
    from fewstep.model import SavedModel

    bundle = SavedModel.from_pretrained(model, allow=options.allowed, kind="text").to(options.pick_device())
    bundle.require("autoencoder", "readout", source=model)
    corpus = corpus_of(bundle, options)
    latents = train_latents(bundle, train_blocks(corpus.train, options.num_latents))
    study = ExactStudy(bundle, latents, options.samples, seed=options.seed)
    make_folder(folder)
    with progress_bar("exact denoiser", "row") as progress:
        rows = Sweep(study.plan(recipe)).run(RowFile(folder / ROWS_FILE), progress)
    write_text(folder / TABLE_FILE, table := exact_table(rows))
    write_picture(exact_picture(rows), folder / PICTURE_FILE)
    print(f"{table}\ntable    {folder / TABLE_FILE}\npicture  {folder / PICTURE_FILE}")
