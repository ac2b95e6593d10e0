"""``fewstep theory``: the theorems of arXiv:2606.30705 in closed form, a picture and a JSON file each."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from fewstep.cli.output import make_folder, new_text_file
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError
from fewstep.lab.theory import latents_command as theory_latents
from fewstep.lab.theory.latents_command import LatentsOptions
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.lab.theory import Curve, Surface

STUDIES = {
    "flips": 40_000,
    "modes": 192,
    "dimension": 192,
    "hierarchy": 192,
    "coarea": 1_000_000,
    "surface": 1000,
}
"""Study to examples per point."""
FEWEST_MODES, FEWEST_EXAMPLES = 1024, 2


@dataclass(kw_only=True)
class StudyOptions:
    """Studies: theorems of arXiv:2606.30705.

    Args:
        all: every study down to --surface.
        flips: Theorem 3, flip rate of the posterior-mean step against tube mass.
        modes: Theorem 5, peak stiffness over M modes where the dimension grows with log M.
        dimension: Theorem 6, peak stiffness over M modes in a fixed dimension.
        hierarchy: Theorem 7, peak stiffness of a step over the depth of a tree of modes.
        coarea: Theorem 17, boundary integral, growth of the tube, mean stiffness.
        surface: accuracy over depth K and a cap on stiffness, with lines of equal accuracy.
    """

    all: bool = False
    flips: bool = False
    modes: bool = False
    dimension: bool = False
    hierarchy: bool = False
    coarea: bool = False
    surface: bool = False


@dataclass(kw_only=True)
class TheoryOptions(StudyOptions, LatentsOptions):
    """Study where few-step sampling fails in closed form: nothing is trained.

    Args:
        path: the path of the flow.
        effort: factor on the examples of each study.
        max_modes: largest M, of the sweeps over M.
        overwrite: repeat studies that are there already.
    """

    path: Literal["linear", "vp"] = "linear"
    effort: PositiveFloat = 1.0
    max_modes: PositiveInt = 100_000
    overwrite: bool = False


def main(argv: list[str]) -> int:
    """Run the studies of ``argv`` that are not there yet; returns the exit code."""
    options = parse_options("theory", TheoryOptions, argv)
    names = [name for name in STUDIES if options.all or getattr(options, name)]
    if not names and options.latents is None:
        raise UserError(f"no study asked for: pass --all, or some of --{', --'.join(STUDIES)}, --latents MODEL")
    if not math.isfinite(options.effort):
        raise UserError(f"--effort is {options.effort}: expected a finite number above 0")
    if options.max_modes < FEWEST_MODES:
        raise UserError(
            f"--max_modes is {options.max_modes}: expected at least {FEWEST_MODES}, for an exponent to show"
        )
    folder = options.out
    make_folder(folder)
    settings = {key: getattr(options, key) for key in ("path", "effort", "max_modes", "seed")}
    for name in names:
        file = folder / f"{name}.json"
        if file.exists() and not options.overwrite:
            _check_settings(file, settings)
            print(f"{name}: {file} is there already; --overwrite repeats it")
            continue
        with new_text_file(file, overwrite=options.overwrite) as write_lines:
            study = make(name, options)
            from fewstep.lab.report.theory import write_theory_picture

            write_theory_picture(study, file.with_suffix(".png"))
            # Last: the JSON file says that the study is complete.
            result = {"settings": settings, **study.to_dict(), "provenance": provenance("theory", argv)}
            write_lines([json.dumps(result, allow_nan=False), "\n"])
        print(f"{name}: {study.title}", *(f"  {fit.to_text()}" for fit in study.fits), sep="\n", flush=True)
    if names:
        print(f"\npictures and figures  {folder}/*.png, *.json")
    if options.latents is None:
        return 0
    return theory_latents.run(options, options.latents, folder / "latents", provenance("theory", argv))


def make(name: str, options: TheoryOptions) -> "Curve | Surface":
    """The study called ``name``, from a generator of its own: it does not depend on which others are made."""
    import torch

    from fewstep.lab import theory
    from fewstep.paths import linear_path, variance_preserving_path
    from fewstep.samplers import FlowSampler

    path = {"linear": linear_path, "vp": variance_preserving_path}[options.path]()
    generator = torch.Generator().manual_seed(options.seed)
    num = max(FEWEST_EXAMPLES, round(STUDIES[name] * options.effort))
    studies: dict[str, Callable[[], Curve | Surface]] = {
        "flips": lambda: theory.flips_curve(path, num=num, generator=generator),
        "modes": lambda: theory.modes_curve(path, num=num, max_modes=options.max_modes, generator=generator),
        "dimension": lambda: theory.dimension_curve(path, num=num, max_modes=options.max_modes, generator=generator),
        "hierarchy": lambda: theory.hierarchy_curve(path, num=num, generator=generator),
        "coarea": lambda: theory.coarea_curve(path, num=num, generator=generator),
        "surface": lambda: theory.surface(
            path,
            [("deterministic", FlowSampler(path)), ("re-injection 1", FlowSampler(path, reinjection=1.0))],
            num=num,
            generator=generator,
        ),
    }
    return studies[name]()


def _check_settings(file: Path, settings: dict[str, object]) -> None:
    """Raise ``UserError`` where ``file`` was made with other settings, or is no study."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{file} is no study of this command: choose another --out, or pass --overwrite") from None
    if found != settings:
        raise UserError(f"{file} was made with {found}, not {settings}: choose another --out, or pass --overwrite")
