"""How hard diagnostics are tried during training, so that they add less than a tenth to a stage of the quickstart."""

from fewstep.evaluation.measurements import DabiEffort

BRIEF = DabiEffort(radii=(), num_probes=4)
"""The local limit alone."""
TUBE_TIMES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
STIFFNESS_TIMES = (0.6, 0.95)
NUM_ITERATIONS = 4
"""Of the power iteration: the value is then some per cent too low, by about as much at every validation."""
NUM_CONTINUATIONS = 2
"""Few, but the estimate of commitment has no bias however few there are."""
