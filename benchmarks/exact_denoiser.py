"""What few steps of the exact denoiser over real latents give, and what of re-injection's gain is mere shrinkage.

    python benchmarks/exact_denoiser.py --latents runs/quickstart/model          # goes on where it stopped
    python benchmarks/exact_denoiser.py --latents runs/quickstart/model --max_rows 5

The same as ``fewstep theory --latents MODEL``: rows in ``runs/theory/latents/rows.jsonl``, the tables of
docs/theory_latents.md in ``table.md`` beside it. About 8 minutes on one busy core for 16,384 latents of 256
numbers, 20 for 512; most of it the capped rows.
"""

import sys

from fewstep.cli.main import errors_to_exit_code
from fewstep.lab.theory.latents_command import main

if __name__ == "__main__":
    sys.exit(errors_to_exit_code(main, sys.argv[1:]))
