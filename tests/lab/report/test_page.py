"""The page: complete in itself, well-formed, named pictures, harmless texts, and the same bytes every time."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from fewstep.lab.report.html_page import harmless, make_report, page_html
from fewstep.lab.report.run_folder import RunReport, read_run, read_runs
from fewstep.lab.report.verdict import RULES
from tests.lab.report.runs_on_disk import MadeDiagnosis, quickstart_table, sweep_row, sweep_rows, whole_run, write_run

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

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

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


def page_of(*runs: RunReport) -> str:
    return page_html(make_report(runs))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of one whole run."""
    return page_of(read_run(whole_run(tmp_path_factory.mktemp("runs") / "mine")))


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


def test_headings_are_in_order_under_one_title(page: str) -> None:
    levels = [int(tag[1]) for tag, _ in seen(page).tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_identifiers_are_unique_and_every_reference_has_its_target(page: str) -> None:
    found = seen(page)
    counted = Counter(found.values("id"))
    assert [name for name, count in counted.items() if count > 1] == []
    for references in (*found.values("aria-labelledby"), *found.values("aria-describedby")):
        assert set(references.split()) <= set(counted)
    assert {place[1:] for place in re.findall(r"url\(([^)]+)\)", page)} <= set(counted)


def test_every_picture_says_what_it_shows_with_its_figures(page: str) -> None:
    pictures = [attributes for tag, attributes in seen(page).tags if tag == "svg"]
    assert len(pictures) >= 8
    for picture in pictures:
        assert picture["role"] == "img"
        assert len(re.findall(r"\d", picture["aria-label"])) >= 2
    labels = " ".join(picture["aria-label"] for picture in pictures)
    assert "Loss of the flow: lines of loss over training step. train: from 0.9 at 10 to 0.7 at 20." in labels
    assert "boundary next to data, normal: 2 (1.8 to 2.2)" in labels
    assert "held-out text: 50" in labels


def test_tables_have_captions_and_scopes(page: str) -> None:
    found = seen(page)
    assert found.count("table") == found.count("caption") >= 4
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in found.tags if tag == "th")


def test_pictures_take_the_colour_of_the_page(page: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.S):
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "#ffffff" not in svg and "fill: white" not in svg
        assert "font-family" not in svg


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "mine")
    first, second = (page_of(read_run(folder)) for _ in range(2))
    assert first == second


def test_every_finding_stands_on_the_page_with_threshold_and_reason(tmp_path: Path) -> None:
    run = read_run(whole_run(tmp_path / "mine"))
    text = " ".join("".join(seen(page_of(run)).text).split())
    (verdict,) = make_report([run]).verdicts
    for finding in verdict.findings:
        for told in (
            finding.rule.question,
            finding.outcome.finding,
            finding.outcome.advice,
            finding.rule.threshold.why,
        ):
            assert " ".join(told.split()) in text
    assert "8 samples, scorer the run's language model" in text


HOSTILE = "</script><script>alert(1)</script><b onclick=x>&amp;\x00\x0c\x1b\x85\u202e\ud800\u2028 $\\frac{$"


def test_hostile_texts_and_names_stay_texts(tmp_path: Path) -> None:
    rows = sweep_rows(few=sweep_row("parallel", 4, "0", 200.0, examples=[HOSTILE]))
    folder = write_run(tmp_path / "<i>$x_{$", diagnosis=MadeDiagnosis(), rows=rows, logs=True)
    (folder / "flow").rename(folder / '_"><b>')
    run = replace(read_run(folder), table=quickstart_table([HOSTILE]), samples=HOSTILE)
    html = page_html(make_report([run], title="<h1>" + HOSTILE))
    html.encode("utf-8")
    found = seen(html)
    assert found.count("script") == 1 and found.count("h1") == 1 and found.count("b") == found.count("i") == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", html)
    told = "".join(found.text)
    shown = "</script><script>alert(1)</script><b onclick=x>&amp;⟨00⟩⟨0C⟩⟨1B⟩⟨85⟩⟨202E⟩⟨D800⟩"
    assert told.count(shown) == 3  # the title, the heading, and the sample among the texts


def test_letters_of_all_scripts_are_left_alone() -> None:
    text = "naïve Ω 日本語 שלום 👩‍🚀\n\t"
    assert harmless(text) == text


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    second = MadeDiagnosis(decidedness=[0.0, 0.1, 0.5])
    second.table["cci"] = 0.0
    paths = [
        str(whole_run(tmp_path / "first")),
        str(write_run(tmp_path / "second", diagnosis=second, rows=sweep_rows())),
    ]
    html = page_of(*read_runs(paths))
    found = seen(html)
    overview = html[html.index('class="overview"') : html.index("</table>", html.index('class="overview"'))]
    row = next(line for line in overview.split("</tr>") if "rule-cci" in line)
    assert re.findall(r'data-state="([^"]+)"', row) == ["good", "bad"]
    labels = " ".join(attributes["aria-label"] for tag, attributes in found.tags if tag == "svg")
    assert "first: from 0.3 at 0.25 to 0.9 at 0.75. second: from 0 at 0.25 to 0.5 at 0.75." in labels
    assert "first: parallel, gamma 0" in labels and "second: parallel, gamma 0" in labels  # one protocol, one chart
    assert len(set(found.values("id"))) == len(found.values("id"))


def test_runs_whose_scores_do_not_compare_do_not_share_a_chart(tmp_path: Path) -> None:
    one = write_run(tmp_path / "first", table=quickstart_table())
    two = write_run(tmp_path / "second", rows=sweep_rows())
    html = page_of(*read_runs([str(one), str(two)]))
    labels = [attributes["aria-label"] for tag, attributes in seen(html).tags if tag == "svg"]
    perplexities = [label for label in labels if label.startswith("Perplexity")]
    assert len(perplexities) == 2
    assert not any("first" in label and "second" in label for label in perplexities)


@pytest.mark.parametrize(
    "parts",
    [{"table": quickstart_table()}, {"diagnosis": MadeDiagnosis()}, {"rows": sweep_rows()}, {"logs": True}],
    ids=lambda parts: next(iter(parts)),
)
def test_a_run_with_missing_parts_says_how_to_get_them(parts: dict[str, object], tmp_path: Path) -> None:
    found = seen(page_of(read_run(write_run(tmp_path / "part", **parts))))  # type: ignore[arg-type]
    text = "".join(found.text)
    missing = sum(attributes.get("class") == "missing" for _, attributes in found.tags)
    assert missing >= 2
    assert ("To measure it: fewstep diagnose RUN/model" in text) == ("diagnosis" not in parts)
    assert len([rule for rule in RULES if rule.question in text]) == len(RULES)


def test_a_picture_without_points_is_left_out_and_no_run_is_refused(tmp_path: Path) -> None:
    run = read_run(whole_run(tmp_path / "run"))
    bare = replace(run, diagnoses=tuple(replace(one, results={}) for one in run.diagnoses))
    assert "Stiffness over time" in page_of(run)
    assert "Stiffness over time" not in page_of(bare)
    with pytest.raises(ValueError, match="no run"):
        make_report([])
