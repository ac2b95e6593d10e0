"""Viewer and report in a real browser: by mouse and keyboard, in any theme and width, and they ask for nothing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli.main import main
from fewstep.lab.report.trace_page import trace_fragment
from fewstep.lab.report.traces_file import write_traces
from tests.lab.report.traces import traces, wide

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser here: none of {', '.join(NAMES)} is on the path")

DIAGNOSIS = Path(__file__).parents[3] / "docs" / "diagnosis" / "diagnostics.json"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
AROUND = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Traces</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<style>:root {{ color-scheme: light dark }} body {{ margin: 1rem }}</style></head>
<body><h1>Traces</h1>VIEWER</body></html>"""


@dataclass
class Opened:
    """A page, with what it asked for beside its own file and what went wrong on it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The tokens as they stand there, without the numbers of their steps."""
        buttons = "[...document.querySelectorAll('#trace-text button')]"
        return self.page.evaluate(f"{buttons}.map((button) => button.firstChild.data).join('')")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Root, and a container without user namespaces, cannot have the sandbox; what is opened here is our own file.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    fragment = trace_fragment([traces(), wide()], ["first", "</script>"])
    file.write_text(AROUND.replace("VIEWER", fragment), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that the command writes of two runs, each with the diagnosis of the documentation and traces."""
    folder = tmp_path_factory.mktemp("report")
    for name, made in (("first", traces()), ("second", wide())):
        (folder / name / "diagnosis").mkdir(parents=True)
        shutil.copy(DIAGNOSIS, folder / name / "diagnosis")
        write_traces(made, folder / name / "traces.json")
    runs = [str(folder / name) for name in ("first", "second")]
    assert main(["report", *runs, "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


@contextmanager
def opened(browser: Any, file: Path, **settings: Any) -> Iterator[Opened]:
    """The page in a fresh context, all requests but that for the file itself refused and kept."""
    context = browser.new_context(**settings)
    page = context.new_page()
    found = Opened(page)

    def decide(route: Any) -> None:
        if route.request.url == file.as_uri():
            route.continue_()
        else:
            found.requests.append(route.request.url)
            route.abort()

    page.route("**/*", decide)
    page.on("console", lambda message: found.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.goto(file.as_uri())
    yield found
    context.close()


@pytest.fixture
def viewer(browser: Any, file: Path) -> Iterator[Opened]:
    with opened(browser, file) as found:
        yield found
        assert found.requests == []
        assert found.errors == []


def test_it_opens_on_the_end_of_a_deterministic_trajectory(viewer: Opened) -> None:
    assert viewer.page.locator("#trace-app").is_visible()
    assert viewer.text() == "the old ship sank"
    assert viewer.page.locator("#trace-count-value").inner_text() == "4"
    assert viewer.page.get_by_label("deterministic").is_checked()
    assert not viewer.page.locator("noscript table").is_visible()


def test_the_step_slider_goes_back_to_what_was_read_then(viewer: Opened) -> None:
    steps = viewer.page.get_by_label("Step shown")
    seen = []
    for step in range(1, 5):
        steps.fill(str(step))
        seen.append(viewer.text())
    assert seen == ["⟨0C⟩\ufffd⟨0C⟩</script>", "⟨0C⟩ old ship</script>", "the old ship</script>", "the old ship sank"]


def test_keys_move_sliders_and_tokens(viewer: Opened) -> None:
    page = viewer.page
    page.get_by_label("Step shown").focus()
    page.keyboard.press("ArrowLeft")
    assert viewer.text() == "the old ship</script>"
    page.keyboard.press("Home")
    assert viewer.text() == "⟨0C⟩\ufffd⟨0C⟩</script>"
    page.keyboard.press("End")
    page.get_by_label("Steps in all").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#trace-step-value").inner_text() == "2 of 2"
    assert viewer.text() == "⟨0C⟩ old ship</script>"
    page.locator("#trace-text button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.firstChild.data") == " old"
    assert page.locator("#trace-detail").inner_text().startswith("Token 2, “ old” (number 11)")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.firstChild.data") == "</script>"
    page.keyboard.press("ArrowRight")  # there is no token behind the last
    assert page.locator("#trace-detail").inner_text().startswith("Token 4,")
    assert page.locator("#trace-text button[tabindex='0']").count() == 1  # one stop on the way through the page


def test_the_switch_shows_the_other_ways_and_keeps_to_their_numbers_of_steps(viewer: Opened) -> None:
    page = viewer.page
    page.get_by_label("deterministic").focus()
    page.keyboard.press("ArrowDown")
    assert viewer.text() == "the café↵<|endoftext|>"
    assert "The first 4 of 6 tokens" in page.locator("#trace-note").inner_text()
    assert "strength 0.5" in page.locator("#trace-note").inner_text()
    page.get_by_label("Steps in all").fill("1")
    assert page.locator("#trace-count-value").inner_text() == "2"
    page.get_by_label("commitment head").check()  # has no 2 steps
    assert page.locator("#trace-count-value").inner_text() == "1"
    assert viewer.text() == "the old ship sank"
    assert "strength" not in page.locator("#trace-note").inner_text()


def test_other_samples_and_runs_are_chosen_by_name(viewer: Opened) -> None:
    page = viewer.page
    page.get_by_label("Sample").select_option("2")
    assert viewer.text() == " sank ship oldthe"
    assert page.get_by_label("Run").locator("option").all_inner_texts() == ["first", "</script>"]
    page.get_by_label("Run").select_option("</script>")
    assert viewer.text() == 16 * " sank ship oldthe"
    assert page.get_by_label("Sample").input_value() == "1"


def test_figures_marks_and_spoken_text_are_those_of_the_step(viewer: Opened) -> None:
    page = viewer.page
    page.get_by_label("Step shown").fill("3")
    buttons = page.locator("#trace-text button")
    assert [buttons.nth(i).get_attribute("aria-label") for i in range(4)] == [
        "the, 0.15 rms from a boundary, changed in this step, settled at step 3",
        " old, 0.45 rms from a boundary, settled at step 2",
        " ship, 0.75 rms from a boundary, settled at step 2",
        "</script>, 1.05 rms from a boundary, will change again",
    ]
    assert [buttons.nth(i).get_attribute("data-near") for i in range(4)] == ["1", "2", "3", "4"]
    assert buttons.locator("sup").all_inner_texts() == ["3", "2", "2"]
    assert page.locator("#trace-text .trace-changed").count() == 1
    status = page.locator("[aria-live=polite]")
    assert "Step 3 of 4, from t = 0.50 to 0.75: 1 token changed, 3 of 4 settled" in status.inner_text()
    assert page.locator("#trace-spoken").text_content() == "the old ship</script>"
    page.get_by_label("Step shown").fill("4")
    assert buttons.locator("sup").all_inner_texts() == ["3", "2", "2", "4!"]
    assert "In the last step 1 token still changed" in page.locator("#trace-settled").inner_text()


def test_the_picture_of_all_steps_has_a_cell_a_token_and_step_and_says_what_it_shows(viewer: Opened) -> None:
    grid = viewer.page.get_by_role("img")
    assert "2 at step 2, 1 at step 3, 1 at step 4 of 4" in grid.get_attribute("aria-label")
    assert grid.locator("b").count() == 16
    assert grid.locator("b.trace-moved").count() == 2 + 1 + 1
    grid.locator("b[data-step='2'][data-token='0']").click()
    assert viewer.text() == "⟨0C⟩ old ship</script>"
    detail = viewer.page.locator("#trace-detail").inner_text()
    assert "“⟨0C⟩” (step 1 to 2), “the” (step 3 to 4)" in detail


def test_play_runs_from_the_start_to_the_end_and_stops(viewer: Opened) -> None:
    page = viewer.page
    page.clock.install()
    page.reload()
    page.get_by_role("button", name="Play").click()
    assert page.locator("#trace-step-value").inner_text() == "1 of 4"
    assert page.locator("#trace-status").get_attribute("aria-live") == "off"
    page.clock.run_for(1500)
    assert page.locator("#trace-step-value").inner_text() == "3 of 4"
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(1500)
    assert page.locator("#trace-step-value").inner_text() == "3 of 4"
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(3000)
    assert page.locator("#trace-step-value").inner_text() == "4 of 4"
    assert page.get_by_role("button", name="Play").is_visible()
    assert page.locator("#trace-status").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_runs_out_of_the_page_in_any_theme(browser: Any, file: Path, scheme: str, width: int) -> None:
    with opened(browser, file, color_scheme=scheme, viewport={"width": width, "height": 800}) as found:
        for run in ("first", "</script>"):
            found.page.get_by_label("Run").select_option(run)
            assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        token = found.page.locator("#trace-text button").first
        ink, paper = token.evaluate("(b) => [getComputedStyle(b).color, getComputedStyle(b).backgroundColor]")
        bright = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
        assert (bright[0] > bright[1]) == (scheme == "dark")
        assert (found.requests, found.errors) == ([], [])


def test_without_scripts_the_final_texts_stand_in_a_table(browser: Any, file: Path) -> None:
    with opened(browser, file, java_script_enabled=False, viewport={"width": 360, "height": 800}) as found:
        assert not found.page.locator("#trace-app").is_visible()
        rows = found.page.locator("noscript tr").all_inner_texts()
        assert "first\t1\tdeterministic\t4\tthe old ship sank" in rows
        assert len(rows) == 1 + 2 * 2 * len(traces().paths)
        assert found.page.locator("html").bounding_box()["width"] <= 360


def test_the_report_holds_the_viewer_and_it_moves_by_keyboard(browser: Any, report: Path) -> None:
    with opened(browser, report) as found:
        page, viewer = found.page, found.page.locator("#viewer")
        assert found.text() == "the old ship sank"
        viewer.get_by_label("Step shown").focus()
        page.keyboard.press("ArrowLeft")
        assert found.text() == "the old ship</script>"
        viewer.get_by_role("radio", name="deterministic").focus()
        page.keyboard.press("ArrowDown")
        viewer.get_by_label("Step shown").fill("4")
        assert found.text() == "the café↵<|endoftext|>"
        viewer.get_by_label("Run").select_option("second")
        assert found.text() == 16 * "the café↵<|endoftext|>"
        assert (found.requests, found.errors) == ([], [])


def test_every_picture_of_the_report_has_a_name_and_every_heading_its_place(browser: Any, report: Path) -> None:
    with opened(browser, report) as found:
        page = found.page
        pictures = page.get_by_role("img")
        names = [pictures.nth(i).get_attribute("aria-label") for i in range(pictures.count())]
        assert len(names) > 5
        assert all(name and len(name) > 20 for name in names)
        assert page.locator("svg").count() == page.locator("svg[role=img][aria-label]").count() == len(names) - 1
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise([0, *levels]))
        links = page.evaluate("[...document.links].map((a) => a.getAttribute('href'))")
        assert {"#viewer", "#verdict"} <= set(links)
        assert all(link.startswith("#") and page.locator(f'[id="{link[1:]}"]').count() == 1 for link in set(links))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_fits_a_phone_and_its_button_turns_the_theme_of_viewer_and_page(
    browser: Any, report: Path, scheme: str
) -> None:
    def is_dark(selector: str) -> bool:
        style = f"getComputedStyle(document.querySelector('{selector}'))"
        colours = found.page.evaluate(f"[{style}.color, {style}.backgroundColor]")
        ink, paper = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
        return ink > paper

    with opened(browser, report, color_scheme=scheme, viewport={"width": 360, "height": 800}) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert is_dark("body") == is_dark("#trace-text button") == (scheme == "dark")
        found.page.locator("#theme").click()
        assert is_dark("body") == is_dark("#trace-text button") == (scheme == "light")
        assert (found.requests, found.errors) == ([], [])
