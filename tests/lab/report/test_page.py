"""The page: complete in itself, well-formed, named pictures, harmless texts, and the same bytes every time."""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fewstep.diagnostics.result import Picture, Series
from fewstep.lab.report.charts import alternative_text, chart
from fewstep.lab.report.page import make_report, page_html, side_by_side, viewer_json, visible
from fewstep.lab.report.rules import RULES
from fewstep.lab.report.run import Run, read_run, read_runs
from fewstep.lab.report.traces import Traces
from tests.lab.report.runs_on_disk import MadeDiagnosis, sweep_row, sweep_rows, whole_run, write_run
from tests.lab.report.traces import traces

VOID = {"meta", "br", "img", "input", "link", "hr", "path", "use", "rect"}
NAMESPACE = "http://www.w3.org/2000/svg"


@dataclass
class Seen(HTMLParser):
    """What a browser would see: tags with attributes, text, and what is open."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def seen(html: str) -> Seen:
    found = Seen()
    found.feed(html)
    found.close()
    assert not found.open
    return found


def page_of(*runs: Run, viewer: dict[str, Traces] | None = None) -> str:
    return page_html(make_report(runs, traces=viewer))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of one whole run with a viewer."""
    run = read_run(whole_run(tmp_path_factory.mktemp("runs") / "mine"))
    return page_of(run, viewer={"mine": traces()})


def test_nothing_on_the_page_points_outside_of_it(page: str) -> None:
    found = seen(page)
    for attribute in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
        assert all(value.startswith("#") for value in found.values(attribute)), attribute
    targets = {value[1:] for value in found.values("href")}
    assert targets <= set(found.values("id"))
    assert all(place.startswith("#") for place in re.findall(r"url\(\s*['\"]?([^'\")]+)", page))
    assert not re.findall(r"@import|fetch\(|XMLHttpRequest|<link", page)
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) <= {NAMESPACE}
    (policy,) = [attributes["content"] for tag, attributes in found.tags if attributes.get("http-equiv")]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def test_identifiers_are_unique_and_every_reference_has_its_target(page: str) -> None:
    found = seen(page)
    counted = Counter(found.values("id"))
    assert [name for name, count in counted.items() if count > 1] == []
    assert found.count("table") == found.count("caption") >= 3
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in found.tags if tag == "th")
    for references in (*found.values("aria-labelledby"), *found.values("aria-describedby")):
        assert set(references.split()) <= set(counted)
    assert {place[1:] for place in re.findall(r"url\(([^)]+)\)", page)} <= set(counted)


def test_every_picture_says_what_it_shows_with_its_figures(page: str) -> None:
    pictures = [attributes for tag, attributes in seen(page).tags if tag == "svg"]
    assert len(pictures) >= 8
    for picture in pictures:
        assert picture["role"] == "img"
        assert len(re.findall(r"\d", picture["aria-label"])) >= 2
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S):  # in the colours of the page
        assert "currentColor" in svg and not re.search("#010203|#ffffff|fill: white|font-family", svg)
    labels = " ".join(picture["aria-label"] for picture in pictures)
    assert "Loss of the stage flow: lines of loss over training step. train: 0.9 at 10 to 0.7 at 20, between" in labels
    assert "held-out text: 50 at 5 to 50 at 17, between 50 and 50." in labels


def test_every_finding_stands_on_the_page_with_threshold_and_reason(tmp_path: Path) -> None:
    run = read_run(whole_run(tmp_path / "mine"))
    text = " ".join("".join(seen(page_of(run)).text).split())
    (verdict,) = make_report([run]).verdicts
    for finding in verdict.findings:
        for part in (finding.rule.question, finding.text, finding.advice, finding.rule.threshold.why):
            assert " ".join(part.split()) in text
    assert "8 samples, scorer the run's language model" in text


HOSTILE = "</script><script>alert(1)</script><b onclick=x>&amp;\x00\x0c\x1b\x85\u202e\ud800\u2028 $\\frac{$"


def test_hostile_texts_names_and_tokens_stay_texts(tmp_path: Path) -> None:
    rows = sweep_rows(few=sweep_row("parallel", 4, "0", 200.0, examples=[HOSTILE.replace("\ud800", "")]))
    folder = write_run(tmp_path / "<i>$x_{$", diagnosis=MadeDiagnosis(), rows=rows, logs=True)
    (folder / "flow").rename(folder / '_"><b>')
    bad = replace(traces(), vocabulary=(HOSTILE, "<!--", *traces().vocabulary[2:]))
    html = page_html(make_report([read_run(folder)], title="<h1>" + HOSTILE, traces={"<img src=x>": bad}))
    html.encode("utf-8")
    found = seen(html)
    assert found.count("script") == 2 and found.count("h1") == 1 and found.count("img") == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", html)
    text = "".join(found.text)
    shown = "</script><script>alert(1)</script><b onclick=x>&amp;⟨00⟩⟨0C⟩⟨1B⟩⟨85⟩⟨202E⟩"
    assert text.count(shown) == 3  # the title, the heading, and the sample among the texts


def test_the_data_of_the_viewer_read_back_whatever_the_tokens_are(page: str) -> None:
    (data,) = re.findall(r'<script type="application/json" id="trace-data">(.*?)</script>', page, flags=re.S)
    (run,) = json.loads(data)["runs"]
    assert run["name"] == "mine"
    expected = replace(traces(), vocabulary=tuple(map(visible, traces().vocabulary)))
    assert run["traces"] == json.loads(json.dumps(asdict(expected)))
    odd = replace(traces(), vocabulary=tuple("<>&\u2028\u2029") + traces().vocabulary[5:])
    assert not set(viewer_json({"a": odd})) & set("<>&\u2028\u2029")


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" café 汉 🙂", " café 汉 🙂"),
        ("a\nb", "a↵b"),
        ("\x00\x7f", "⟨00⟩⟨7F⟩"),
        ("\u202eabc\u200d\u2028", "⟨202E⟩abc⟨200D⟩⟨2028⟩"),
    ],
)
def test_characters_without_looks_are_made_visible_in_tokens(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    second = MadeDiagnosis(decidedness=[0.0, 0.1, 0.5])
    second.table["cci"] = 0.0
    paths = [
        str(whole_run(tmp_path / "first")),
        str(write_run(tmp_path / "second", diagnosis=second, rows=sweep_rows())),
    ]
    html = page_of(*read_runs(paths))
    found = seen(html)
    rule = html[html.index('id="rule-cci"') :].partition("</summary>")[0]
    assert re.findall(r'data-state="([^"]+)"', rule) == ["good", "bad"]
    labels = " ".join(attributes["aria-label"] for tag, attributes in found.tags if tag == "svg")
    assert "first: made: 0.3 at 0.25 to 0.9 at 0.75, between 0.3 and 0.9. second: made: 0 at 0.25" in labels
    assert "first: flow readout=parallel" in labels and "second: flow readout=parallel" in labels  # one chart
    assert "second: held-out text" not in labels
    assert len(set(found.values("id"))) == len(found.values("id"))
    other = [sweep_row("parallel", 4, "0", 90.0, protocol={"block_size": 16})]
    mixed = make_report(read_runs([paths[0], str(write_run(tmp_path / "third", rows=other))]))
    titles = [chart.picture.title for chart in mixed.charts["scores"] if chart.name.startswith("chart-perplexity")]
    assert titles == ["first: Perplexity", "first: Perplexity", "third: Perplexity", "third: Perplexity"]


def test_diagnoses_of_several_stand_in_one_table_that_says_what_they_do_not_share(tmp_path: Path) -> None:
    ours, theirs = MadeDiagnosis().to_dict(), MadeDiagnosis(table={"dabi": 50.0, "first": 7.0}).to_dict()
    ours["protocol"] |= {"whitened": True, "latent_rms": 1.0, "examples": 512}
    theirs["protocol"] |= {"whitened": False, "latent_rms": 9.0, "examples": 300}
    theirs |= {"n": 4096, "num_examples": 300, "model": "others/model"}
    theirs["results"]["table"]["rows"][1]["note"] = "median; >=; 60.0% censored"
    for name, content in (("ours", ours), ("theirs", theirs)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    runs = read_runs([str(tmp_path / "ours.json"), str(tmp_path / "theirs.json")])
    (table,) = side_by_side(runs)
    assert tuple(table.heading) == ("", "ours", "theirs")
    cells = {row[0]: tuple(row[1:]) for row in table.rows}
    assert cells["model"] == ("made", "others/model")
    assert (cells["n"], cells["examples"]) == (("100", "4,096"), ("16", "300"))
    assert cells["latents"] == ("whitened", "not whitened")
    assert cells["dabi"] == ("2 (1.8 to 2.2)", "50 (45 to 55)")
    assert cells["cci"] == ("0.3 (0.27 to 0.33)", "–")
    assert cells["first"] == ("–", "≥ 7 (6.3 to 7.7)")
    assert table.caption.endswith("Their protocols differ in whitened, examples.")
    assert table.caption in " ".join(seen(page_of(*runs)).text)
    same = replace(runs[1], name="again")
    assert next(side_by_side([runs[1], same])).caption.endswith("Their protocols are the same.")
    assert not list(side_by_side(runs[:1]))


@pytest.mark.parametrize(
    "parts",
    [{"diagnosis": MadeDiagnosis()}, {"rows": sweep_rows()}, {"logs": True}],
    ids=lambda parts: next(iter(parts)),
)
def test_a_run_with_missing_parts_says_how_to_get_them(parts: dict[str, object], tmp_path: Path) -> None:
    found = seen(page_of(read_run(write_run(tmp_path / "part", **parts))))  # type: ignore[arg-type]
    text = "".join(found.text)
    missing = sum(attributes.get("class") == "missing" for _, attributes in found.tags)
    assert missing >= 2
    assert ("To measure it: fewstep diagnose RUN/model" in text) == ("diagnosis" not in parts)
    assert len([rule for rule in RULES if rule.question in text]) == len(RULES)


def test_a_label_is_text_and_no_formula_and_the_alternative_text_an_attribute() -> None:
    labels = ("costs $5", "or $\\frac{$ & <b>", '"<this>"')
    picture = Picture("T", "x", "y", tuple(Series(label, (1.0, 10.0), (3.0, 5000.0)) for label in labels), log_x=True)
    svg = chart(picture, "name", "caption").svg
    assert "costs $5" in svg and "or $\\frac{$ &amp; &lt;b&gt;" in svg
    assert svg.startswith('<svg role="img" aria-label="T: lines of y over x.')
    assert "&quot;&lt;this&gt;&quot;: 3 at 1 to 5,000 at 10" in svg.partition(">")[0]


def test_the_alternative_text_has_ends_and_extremes() -> None:
    curve = Series("c", (2.0, 1.0, 3.0), (-1.0, 2.0, 2.0))
    text = alternative_text(Picture("T", "x", "y", (curve,)))
    assert text == "T: lines of y over x. c: 2 at 1 to 2 at 3, between -1 and 2."
