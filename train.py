"""Thin door to `fewstep train`."""

import sys

from fewstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
