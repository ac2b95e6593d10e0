"""The viewer as HTML: harmless whatever the tokens are, complete in itself, readable without a script."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import pytest
from jinja2 import Environment

from fewstep.lab.report.trace_page import BOUNDS, final_texts, labels, script_json, trace_fragment, visible
from tests.lab.report.traces import traces

VOID = {"input", "meta", "br", "hr", "img", "link"}


class Parsed(HTMLParser):
    """Elements with their attributes, texts by element, and whether all that opens is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def test_all_that_opens_is_closed_and_the_data_are_the_traces() -> None:
    page = Parsed(trace_fragment([traces()], ["mine"]))
    assert not page.open
    data, script = page.texts["script"]
    (run,) = json.loads(data)["runs"]
    assert run["name"] == "mine"
    expected = replace(traces(), vocabulary=tuple(map(visible, traces().vocabulary)))
    assert run["traces"] == json.loads(json.dumps(expected.to_dict()))
    assert json.loads(data)["bounds"] == list(BOUNDS)
    assert "addEventListener" in script


def test_nothing_comes_from_elsewhere() -> None:
    html = trace_fragment([traces()])
    page = Parsed(html)
    assert not page.attributes("src")
    assert not page.attributes("href")
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|import\(", html)


def test_ids_are_unique_and_begin_with_trace_and_every_label_has_its_control() -> None:
    page = Parsed(trace_fragment([traces()]))
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)
    assert all(name is not None and name.startswith("trace") for name in ids)
    assert set(page.attributes("for")) <= set(ids)
    assert set(page.attributes("aria-labelledby")) <= set(ids)
    assert not {tag for tag, _ in page.elements} & {"h1", "h2", "h3"}


def test_a_script_end_a_comment_and_a_line_separator_in_a_token_stay_data() -> None:
    bad = ("</script><script>alert(1)</script>", "<!--", "]]>", "&amp;", "\u2028", "'\"", *traces().vocabulary[6:])
    html = trace_fragment([replace(traces(), vocabulary=bad)], ["<img src=x onerror=alert(1)>"])
    page = Parsed(html)
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert "img" not in {tag for tag, _ in page.elements}
    (run,) = json.loads(page.texts["script"][0])["runs"]
    assert run["traces"]["vocabulary"][0] == bad[0]
    assert run["name"] == "<img src=x onerror=alert(1)>"
    assert bad[0] in "".join(page.texts["td"])


def test_json_for_a_script_reads_back_whatever_it_holds() -> None:
    value = {"a": "".join(map(chr, [*range(0x20, 0x7F), 0x2028, 0x2029, 0x1F600]))}
    text = script_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", " the"),
        ("café 汉 🙂", "café 汉 🙂"),
        ("a\nb", "a↵b"),
        ("\x00\x0c\x7f", "⟨00⟩⟨0C⟩⟨7F⟩"),
        ("\u202eabc\u200d", "⟨202E⟩abc⟨200D⟩"),
        ("\u2028", "⟨2028⟩"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_characters_without_looks_are_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_without_a_script_there_is_a_table_of_every_final_text() -> None:
    page = Parsed(trace_fragment([traces()]))
    cells = iter(page.texts["td"])
    rows = list(zip(cells, cells, cells, cells, strict=True))
    assert len(rows) == 2 * len(traces().paths)
    assert ("1", "deterministic", "4", "the old ship sank") in rows
    assert ("2", "deterministic", "4", " sank ship oldthe") in rows
    assert ("1", "re-injection", "4", "the café↵<|endoftext|>") in rows
    assert rows == [
        (str(row.sample), row.way, str(row.num_steps), row.text)
        for row in final_texts(replace(traces(), vocabulary=tuple(map(visible, traces().vocabulary))))
    ]


def test_two_runs_are_told_apart() -> None:
    page = Parsed(trace_fragment([traces(), traces()], ["first", "second"]))
    assert "run" in page.texts["th"]
    assert page.texts["td"].count("first") == page.texts["td"].count("second") == 2 * len(traces().paths)
    assert [run["name"] for run in json.loads(page.texts["script"][0])["runs"]] == ["first", "second"]
    names = [run["name"] for run in json.loads(Parsed(trace_fragment([traces()] * 2)).texts["script"][0])["runs"]]
    assert names == ["run 1", "run 2"]


@pytest.mark.parametrize(("count", "names"), [(0, None), (0, []), (1, []), (1, ["a", "b"])])
def test_no_traces_or_another_number_of_names_is_refused(count: int, names: list[str] | None) -> None:
    with pytest.raises(ValueError, match="names"):
        trace_fragment([traces()] * count, names)


def test_the_same_traces_give_the_same_bytes_and_a_template_inserts_them_as_they_are() -> None:
    html = trace_fragment([traces()])
    assert html == trace_fragment([traces()])
    assert Environment(autoescape=True).from_string("{{ viewer }}").render(viewer=html) == html


def test_the_legend_names_every_colour() -> None:
    assert labels() == ("under 0.1", "0.1 to 0.25", "0.25 to 0.5", "0.5 to 1", "1 and more")
    html = trace_fragment([traces()])
    for number, label in enumerate(labels()):
        assert re.search(rf'data-near="{number}">word</span> {label}\b', html)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_token_text_stands_out_in_light_and_dark() -> None:
    html = trace_fragment([traces()])
    pairs = dict(re.findall(r"--trace-(\w+): light-dark\((#\w{6}, #\w{6})\)", html))
    colours = {name: pair.split(", ") for name, pair in pairs.items()}
    assert set(colours) == {"ink", "line", *map(str, range(len(BOUNDS) + 1))}
    for theme, number in product((0, 1), range(len(BOUNDS) + 1)):
        assert contrast(colours["ink"][theme], colours[str(number)][theme]) >= 4.5
        # Neighbours on the scale differ; that they are told apart does not rest on colour alone (underlines).
        assert colours["ink"][theme] != colours[str(number)][theme]
