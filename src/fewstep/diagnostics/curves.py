"""Estimates along an axis, as a line with its interval."""

from collections.abc import Sequence

from fewstep.diagnostics.results import Estimate, Series


def estimate_series(label: str, x: Sequence[float], estimates: Sequence[Estimate]) -> Series:
    """``estimates`` over ``x``, one each, with their intervals; an undetermined one has no point on the line."""
    known = [
        (place, one.value, one.interval)
        for place, one in zip(x, estimates, strict=True)
        if one.value is not None and one.interval is not None
    ]
    return Series(
        label,
        tuple(place for place, _, _ in known),
        tuple(value for _, value, _ in known),
        tuple(interval.low for _, _, interval in known),
        tuple(interval.high for _, _, interval in known),
    )
