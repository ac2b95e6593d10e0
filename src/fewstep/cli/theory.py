"""``fewstep theory``: the theorems of arXiv:2606.30705 in closed form, a picture and a JSON file each."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli import theory_latents
from fewstep.cli.arguments import OneLineParser, at_least_one
from fewstep.cli.diagnose import check_writable
from fewstep.cli.output import new_text_file
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.theory import Curve, Surface

STUDIES = {
    "flips": (40_000, "Theorem 3: flip rate of the posterior-mean step against tube mass"),
    "modes": (192, "Theorem 5: peak stiffness over M modes where the dimension grows with log M"),
    "dimension": (192, "Theorem 6: peak stiffness over M modes in a fixed dimension"),
    "hierarchy": (192, "Theorem 7: peak stiffness of a step over the depth of a tree of modes"),
    "coarea": (1_000_000, "Theorem 17: boundary integral, growth of the tube, mean stiffness"),
    "surface": (1000, "accuracy over depth K and a cap on stiffness, with lines of equal accuracy"),
}
"""Name: examples a point, help."""
FEWEST_MODES, FEWEST_EXAMPLES = 1024, 2


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = OneLineParser("fewstep theory", "Study where few-step sampling fails in closed form: nothing is trained.")
    result.add_argument("--all", action="store_true", help="every study down to --surface")
    for name, (_, line) in STUDIES.items():
        result.add_argument(f"--{name}", action="store_true", help=line)
    theory_latents.add_options(result)
    result.add_argument(
        "--path", choices=("linear", "vp"), default="linear", help="the path of the flow (default: %(default)s)"
    )
    result.add_argument(
        "--effort", type=_above_zero, default=1.0, help="factor on the examples of each study (default: %(default)s)"
    )
    result.add_argument(
        "--max_modes", type=at_least_one, default=100_000, help="largest M, of the sweeps over M (default: %(default)s)"
    )
    result.add_argument("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    result.add_argument(
        "--out", type=Path, default=Path("runs/theory"), help="folder of pictures and JSON (default: %(default)s)"
    )
    result.add_argument("--overwrite", action="store_true", help="make studies again that are there already")
    return result


def main(argv: list[str]) -> int:
    """Make the studies that ``argv`` asks for and that are not there yet; returns the exit code.

    Raises ``UserError`` for whatever a user can mend.
    """
    args = parser().parse_args(argv)
    names = [name for name in STUDIES if args.all or getattr(args, name)]
    if not names and args.latents is None:
        raise UserError(f"no study asked for: pass --all, or some of --{', --'.join(STUDIES)}, --latents MODEL")
    if args.max_modes < FEWEST_MODES:
        raise UserError(f"--max_modes is {args.max_modes}: expected at least {FEWEST_MODES}, for an exponent to show")
    folder = args.out.expanduser()
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: getattr(args, key) for key in ("path", "effort", "max_modes", "seed")}
    for name in names:
        file = folder / f"{name}.json"
        if file.exists() and not args.overwrite:
            _check_settings(file, settings)
            print(f"{name}: {file} is there already; --overwrite makes it again")
            continue
        with new_text_file(file, overwrite=args.overwrite) as write_lines:
            study = make(name, args)
            print(f"{name}: {study.title}", *(f"  {fit.to_text()}" for fit in study.fits), sep="\n", flush=True)
            from fewstep.report.theory import write_theory_picture

            write_theory_picture(study, file.with_suffix(".png"))
            # Last: the JSON file says that the study is whole.
            result = {"settings": settings, **study.to_dict(), "provenance": provenance("theory", argv)}
            write_lines([json.dumps(result, allow_nan=False), "\n"])
    if names:
        print(f"\npictures and figures  {folder}/*.png, *.json")
    if args.latents is None:
        return 0
    return theory_latents.run(args, folder / "latents", provenance("theory", argv))


def make(name: str, args: argparse.Namespace) -> "Curve | Surface":
    """The study called ``name``, from a generator of its own: it does not depend on which others are made."""
    import torch

    from fewstep import theory
    from fewstep.paths import linear_path, variance_preserving_path
    from fewstep.samplers import FlowSampler

    path = {"linear": linear_path, "vp": variance_preserving_path}[args.path]()
    generator = torch.Generator().manual_seed(args.seed)
    num = max(FEWEST_EXAMPLES, round(STUDIES[name][0] * args.effort))
    studies: dict[str, Callable[[], Curve | Surface]] = {
        "flips": lambda: theory.flips_curve(path, num=num, generator=generator),
        "modes": lambda: theory.modes_curve(path, num=num, max_modes=args.max_modes, generator=generator),
        "dimension": lambda: theory.dimension_curve(path, num=num, max_modes=args.max_modes, generator=generator),
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


def _above_zero(text: str) -> float:
    """A finite number above 0, as an argument type."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value
