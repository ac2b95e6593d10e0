"""``python -m fewstep``: the same as the installed command ``fewstep``."""

import sys

from fewstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
