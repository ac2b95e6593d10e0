"""Noise to latents: one loop (:class:`FlowSampler`), rules of re-injection as data, snap, and what fits which model."""

from fewstep.samplers.rules import RULES, Noise, Rule, RuleLike, is_consistent, parse_rule
from fewstep.samplers.sampler import (
    SOLVERS,
    DefaultSampling,
    FlowSampler,
    Solver,
    check_compatible,
    default_sampling,
    euler,
    heun,
    incompatibility,
)
from fewstep.samplers.snap import Snap, SnapRule, parse_snap

__all__ = [
    "RULES",
    "SOLVERS",
    "DefaultSampling",
    "FlowSampler",
    "Noise",
    "Rule",
    "RuleLike",
    "Snap",
    "SnapRule",
    "Solver",
    "check_compatible",
    "default_sampling",
    "euler",
    "heun",
    "incompatibility",
    "is_consistent",
    "parse_rule",
    "parse_snap",
]
