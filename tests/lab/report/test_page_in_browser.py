"""The report in a real browser: by mouse and keyboard, in any theme and width, and it requests nothing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli.main import main
from tests.lab.report.runs_on_disk import whole_run
from tests.lab.report.traces import traces, wide

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser here: none of {', '.join(NAMES)} is on the path")


@dataclass
class Opened:
    """A page, with what it asked for beside its own file and what went wrong on it."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The tokens as they stand there."""
        buttons = "[...document.querySelectorAll('#trace-text button')]"
        return self.page.evaluate(f"{buttons}.map((button) => button.textContent).join('')")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Root, and a container without user namespaces, cannot have the sandbox; what is opened here is our own file.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that the command writes of two runs, each with traces."""
    folder = tmp_path_factory.mktemp("report")
    for name, traced in (("first", traces()), ("second", wide())):
        (whole_run(folder / name) / "traces.json").write_text(dumps(asdict(traced)), encoding="utf-8")
    assert main(["report", str(folder / "first"), str(folder / "second"), "--out", str(folder / "page.html")]) == 0
    return folder / "page.html"


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
    assert viewer.page.locator("#trace-count").input_value() == "4"
    assert viewer.page.locator("#trace-mode").input_value() == "deterministic"


def test_keys_move_step_and_tokens(viewer: Opened) -> None:
    page = viewer.page
    page.locator("#trace-step").focus()
    page.keyboard.press("ArrowLeft")
    assert viewer.text() == "the old ship</script>"
    page.keyboard.press("Home")
    assert viewer.text() == "⟨0C⟩\ufffd⟨0C⟩</script>"
    page.keyboard.press("End")
    page.locator("#trace-text button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == " old"
    assert page.locator("#trace-detail").inner_text().startswith("Token 2: “\ufffd” (step 1), “ old” (step 2 to 4).")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.textContent") == " sank"
    page.keyboard.press("ArrowRight")  # there is no token behind the last
    assert page.locator("#trace-detail").inner_text().startswith("Token 4:")
    assert page.locator("#trace-text button[tabindex='0']").count() == 1  # one stop on the way through the page


def test_other_modes_keep_to_their_numbers_of_steps(viewer: Opened) -> None:
    page = viewer.page
    page.locator("#trace-mode").select_option("reinjection")
    assert viewer.text() == "the café↵<|endoftext|>"
    assert "The first 4 of 6 tokens" in page.locator("#trace-note").inner_text()
    assert "strength 0.5" in page.locator("#trace-note").inner_text()
    page.locator("#trace-count").select_option("2")
    assert viewer.text() == "⟨0C⟩ old ship</script>"
    page.locator("#trace-mode").select_option("head")  # has no 2 steps
    assert page.locator("#trace-count").input_value() == "1"
    assert viewer.text() == "the old ship sank"
    assert "strength" not in page.locator("#trace-note").inner_text()


def test_figures_marks_and_status_are_those_of_the_step(viewer: Opened) -> None:
    page = viewer.page
    page.locator("#trace-step").fill("3")
    buttons = page.locator("#trace-text button")
    assert [buttons.nth(i).get_attribute("aria-label") for i in range(4)] == [
        "the, 0.15 rms from a flip, settled at step 3, changed in this step",
        " old, 0.45 rms from a flip, settled at step 2",
        " ship, 0.75 rms from a flip, settled at step 2",
        "</script>, 1.05 rms from a flip, will change again",
    ]
    assert [buttons.nth(i).get_attribute("data-near") for i in range(4)] == ["1", "2", "3", "4"]
    assert page.locator("#trace-text .changed").count() == 1
    status = page.locator("[aria-live=polite]").inner_text()
    assert "Step 3 of 4, from t = 0.50 to 0.75: 1 token changed, 3 of 4 settled, 0 closer than 0.1" in status


def test_the_grid_has_a_cell_for_each_token_and_step_and_says_what_it_shows(viewer: Opened) -> None:
    grid = viewer.page.locator("#trace-grid")
    assert "1 of 4 tokens settled in the last step only" in grid.get_attribute("aria-label")
    assert grid.locator("b").count() == 16
    assert grid.locator("b.moved").count() == 2 + 1 + 1
    grid.locator("b[data-step='2'][data-token='0']").click()
    assert viewer.text() == "⟨0C⟩ old ship</script>"
    assert "“⟨0C⟩” (step 1 to 2), “the” (step 3 to 4)" in viewer.page.locator("#trace-detail").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_runs_out_of_the_page_in_any_theme(browser: Any, file: Path, scheme: str, width: int) -> None:
    with opened(browser, file, color_scheme=scheme, viewport={"width": width, "height": 800}) as found:
        for run in ("first", "second"):
            found.page.locator("#trace-run").select_option(run)
            assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in ("body", "#trace-text button"):
            style = f"getComputedStyle(document.querySelector('{selector}'))"
            colours = found.page.evaluate(f"[{style}.color, {style}.backgroundColor]")
            ink, paper = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
            assert (ink > paper) == (scheme == "dark")
        assert (found.requests, found.errors) == ([], [])


def test_rules_open_by_keyboard_and_without_scripts(browser: Any, file: Path) -> None:
    with opened(browser, file, java_script_enabled=False) as found:
        rule = found.page.locator("#rule-cci")
        assert not rule.locator(".answer").first.is_visible()
        rule.locator("summary").focus()
        found.page.keyboard.press("Enter")
        assert rule.locator(".answer").first.is_visible()
        assert not found.page.locator("#trace-app").is_visible()
