"""How figures are written in the sentences and tables of a report."""

from fewstep.diagnostics.result import Estimate
from fewstep.metrics.intervals import Interval

MINUS = "−"


def percent(share: float) -> str:
    """A share as per cent: one decimal under 10 % and over 90 %, two where one would say none or all."""
    value = 100 * share
    if 0 < abs(value) < 0.05 or 99.95 <= value < 100:
        return f"{value:.2f} %"
    digits = f"{value:.1f}" if abs(value) < 10 or 90 < value < 100 else f"{value:.0f}"
    return f"{digits.removesuffix('.0')} %"


def change(share: float) -> str:
    """A relative change with its sign."""
    return f"{MINUS if share < 0 else '+'}{abs(100 * share):.0f} %"


def figure(value: float) -> str:
    """Three digits, thousands parted by commas; digits before the point are never rounded away."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.1e}" if "e" in text else text


def interval_text(interval: Interval | None) -> str:
    """ "1.2 to 3.4", or nothing."""
    return "" if interval is None else f"{figure(interval.low)} to {figure(interval.high)}"


def estimate_text(estimate: Estimate | None) -> str:
    """Value and interval; a dash where nothing was measured."""
    if estimate is None:
        return "–"
    if estimate.value is None:
        return "undetermined"
    between = interval_text(estimate.interval)
    return f"{figure(estimate.value)} ({between})" if between else figure(estimate.value)
