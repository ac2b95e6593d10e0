"""What a picture shows, in words, for those who do not see it."""

from fewstep.diagnostics.result import Picture, Series
from fewstep.lab.report.wording import figure

MOST_SERIES = 8
"""More than these are counted, not told."""


def alternative_text(picture: Picture) -> str:
    """Title, axes, and of every series where it begins and ends and its extremes."""
    shown = [series for series in picture.series if series.x]
    kind = "bars" if picture.kind == "bars" else "lines"
    told = [f"{picture.title}: {kind} of {picture.y_label} over {picture.x_label}."]
    told += [series_text(series) for series in shown[:MOST_SERIES]]
    if len(shown) > MOST_SERIES:
        told.append(f"{len(shown) - MOST_SERIES} more series.")
    if not shown:
        told.append("There is nothing to draw.")
    return " ".join(told)


def series_text(series: Series) -> str:
    """One series: its ends, and the highest and lowest where those are others."""
    points = sorted(zip(series.x, series.y, strict=True))
    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    if len(points) == 1:
        return f"{series.label}: {figure(first_y)} at {figure(first_x)}."
    text = f"{series.label}: from {figure(first_y)} at {figure(first_x)} to {figure(last_y)} at {figure(last_x)}"
    high, low = max(points, key=lambda point: point[1]), min(points, key=lambda point: point[1])
    if high[1] > max(first_y, last_y):
        text += f", highest {figure(high[1])} at {figure(high[0])}"
    if low[1] < min(first_y, last_y):
        text += f", lowest {figure(low[1])} at {figure(low[0])}"
    return text + "."
