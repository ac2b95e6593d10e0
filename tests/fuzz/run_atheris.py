"""Coverage-guided fuzzing of one reader: ``python tests/fuzz/run_atheris.py NAME -max_total_time=600 FOLDER``.

NAME is one of :data:`tests.fuzz.targets.TARGETS`; what follows goes to libFuzzer, FOLDER keeping inputs that
reach new code. It needs the package atheris, which no test does. The first exception that is no refusal ends it, with
the bytes that led there in a file ``crash-*``.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["fewstep"]):
    from tests.fuzz.targets import TARGETS, kept, seeds


def main() -> None:
    """Start from whole files and go on until told to stop."""
    name, *options = sys.argv[1:]
    folder = next((Path(option) for option in options if not option.startswith("-")), None)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(seeds(name)):
            (folder / f"seed_{number}").write_bytes(content)
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *options], lambda content: (kept(target, content), None)[1])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
