"""Tables of strings: for a terminal, for Markdown, and the figures in their cells."""

from collections.abc import Collection, Sequence

Line = Sequence[str]


def aligned_columns(lines: Sequence[Line], left: Collection[int]) -> str:
    """``lines``, the first of them the heading, in columns of equal width under a rule.

    The columns numbered in ``left`` are flush left, the others flush right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "-" * len(aligned[0]), *aligned[1:]])


def markdown_table(lines: Sequence[Line], caption: str) -> str:
    """``lines``, the first of them the heading, as a Markdown table with its caption below."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(["| " + " | ".join(line) + " |" for line in ruled] + ["", caption, ""])


def rounded(value: float | None) -> str:
    """Three digits at least, and no decimals that nobody can trust; nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
