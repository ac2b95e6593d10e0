"""Laws of data whose denoiser is known exactly, so that no failure is due to training.

The flow of a mixture in closed form (:class:`Mixture`), the exact denoiser of given latents (:class:`LatentPosterior`),
where modes lie, the cells of a nearest-mode readout, and studies of the theorems of arXiv:2606.30705 as we read them:
the paper's abstract and summaries were at hand, its constants and proofs were not. ``docs/findings/theory.md`` says
which statement is proven there, which is measured here, and which is our reading.
"""

from fewstep.lab.theory.cells import (
    BoundaryIntegral,
    boundary_distances,
    boundary_integral,
    final_states,
    least_boundary,
    nearest_modes,
    simplex_boundary,
)
from fewstep.lab.theory.curves import Curve, Fit, Line
from fewstep.lab.theory.latents import CapRule, LatentPosterior
from fewstep.lab.theory.mixtures import Field, Mixture, Posterior
from fewstep.lab.theory.modes import lattice, separation, simplex, sphere, times_of_scales, tree
from fewstep.lab.theory.stiffness_curves import dimension_curve, hierarchy_curve, modes_curve, peak_stiffness
from fewstep.lab.theory.surface import Panel, Surface, surface
from fewstep.lab.theory.tube_curves import coarea_curve, flips_and_tube, flips_curve

__all__ = [
    "BoundaryIntegral",
    "CapRule",
    "Curve",
    "Field",
    "Fit",
    "LatentPosterior",
    "Line",
    "Mixture",
    "Panel",
    "Posterior",
    "Surface",
    "boundary_distances",
    "boundary_integral",
    "coarea_curve",
    "dimension_curve",
    "final_states",
    "flips_and_tube",
    "flips_curve",
    "hierarchy_curve",
    "lattice",
    "least_boundary",
    "modes_curve",
    "nearest_modes",
    "peak_stiffness",
    "separation",
    "simplex",
    "simplex_boundary",
    "sphere",
    "surface",
    "times_of_scales",
    "tree",
]
