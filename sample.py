"""Thin door to `fewstep sample`."""

import sys

from fewstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
