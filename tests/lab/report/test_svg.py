"""Pictures inside a page: labels are drawn as written, and each has a text for those who cannot see it."""

import pytest

from fewstep.diagnostics.result import Picture, Series
from fewstep.lab.report.alternative_text import alternative_text
from fewstep.lab.report.svg import picture_svg


def picture(*labels: str, kind: str = "lines", log: bool = False) -> Picture:
    series = tuple(Series(label, (1.0, 10.0, 100.0), (3.0, 5000.0, 4.0)) for label in labels)
    return Picture("Title", "steps", "share", series, kind, log, log)  # type: ignore[arg-type]


def test_a_label_is_text_and_no_formula() -> None:
    svg = picture_svg(picture("costs $5", "or $\\frac{$ & <b>"), "alt", name="one")
    assert "costs $5" in svg and "or $\\frac{$ &amp; &lt;b&gt;" in svg


def test_the_alternative_text_is_an_attribute_whatever_it_says() -> None:
    svg = picture_svg(picture("a"), 'says "<this>" & that', name="one")
    assert svg.startswith('<svg role="img" aria-label="says &quot;&lt;this&gt;&quot; &amp; that" viewBox=')
    assert svg.endswith("</svg>")


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (picture("a"), "a: from 3 at 1 to 4 at 100, highest 5,000 at 10."),
        (Picture("T", "x", "y", (Series("b", (1.0,), (0.5,)),), "bars"), "T: bars of y over x. b: 0.5 at 1."),
        (
            Picture("T", "x", "y", (Series("c", (2.0, 1.0, 3.0), (-1.0, 2.0, 2.0)),)),
            "2 at 1 to 2 at 3, lowest -1 at 2.",
        ),
        (Picture("T", "x", "y", (Series("none", (), ()),)), "There is nothing to draw."),
        (picture(*"abcdefghij"), "2 more series."),
    ],
)
def test_the_alternative_text_has_the_ends_and_the_extremes(shown: Picture, told: str) -> None:
    assert told in alternative_text(shown)
