"""``fewstep replay``: a training step that was not finite, once more, with what in it is not finite."""

from pathlib import Path

from fewstep.cli.arguments import OneLineParser

ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}
EXIT_NOT_FINITE = 1


def main(argv: list[str]) -> int:
    """Repeat the step in the file of ``argv`` and print what is found; returns 0 where all is finite now, else 1.

    Raises ``UserError`` for a file that holds no step, and for data or a base model that are gone.
    """
    parser = OneLineParser(
        "fewstep replay",
        "Repeat a training step whose loss or gradient was not finite, and say which weights, terms, examples and "
        "gradients are not. Exit code 1 where something is not finite, 0 where all is. Writes nothing.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what a stopped run left in its folder nonfinite/")
    parser.add_argument(
        "--device", choices=tuple(ACCELERATORS), default="auto", help="where to repeat it (default: %(default)s)"
    )
    args = parser.parse_args(argv)

    from fewstep.training.replay import replay

    found = replay(args.file.expanduser(), ACCELERATORS[args.device])
    print("\n".join(found.lines()))
    return 0 if found.is_finite else EXIT_NOT_FINITE
