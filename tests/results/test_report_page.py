"""The page in a real browser: it asks for nothing, complains of nothing, is sorted and walked by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results.aggregate import aggregate
from results.report.screenshot import chromium, take
from sohes.data.label_store import LabelStore
from tests.results.report_runs import write_scene_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, of the extra [test]")
pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene_run(tmp_path_factory.mktemp("page") / "scenes", images=2, side=128)


@pytest.fixture(scope="module")
def address(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return aggregate([run_folder], tmp_path_factory.mktemp("out")).report.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, `(width, colour scheme)` as parametrised; fails where it asks for anything or complains."""
    width, scheme = getattr(request, "param", (1280, "light"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector(".panels figure")
    yield page
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [address]


BOTH = pytest.mark.parametrize("opened", [(1280, "light"), (390, "dark")], indirect=True)


@BOTH
def test_it_is_readable_by_all(opened: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core, of the extra [test]")
    opened.get_by_role("button", name="Down").click()
    found = axe.Axe().run(opened).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


@BOTH
def test_it_never_scrolls_sideways(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("opened", [(390, "light")], indirect=True)
def test_plots_and_tables_keep_within_a_narrow_page(opened: Any) -> None:
    widest = opened.evaluate(
        "Math.max(...[...document.querySelectorAll('.scroll, figure')].map((one) => one.getBoundingClientRect().right))"
    )
    assert widest <= 390


def test_a_title_sorts_by_mouse_and_by_keyboard(opened: Any) -> None:
    table = opened.locator("#table-phases table.numbers").first
    title = table.locator("thead th", has_text="AR@1000").first
    column = title.evaluate("(one) => one.cellIndex")

    def numbers() -> list[str]:
        return table.evaluate(f"(one) => [...one.tBodies[0].rows].map((row) => row.cells[{column}].textContent.trim())")

    assert numbers() == ["12.0", "18.0", "21.5"]
    title.get_by_role("button").click()
    assert title.get_attribute("aria-sort") == "descending"
    assert numbers() == ["21.5", "18.0", "12.0"]
    opened.keyboard.press("Enter")  # the button has the focus
    assert title.get_attribute("aria-sort") == "ascending"
    assert numbers() == ["12.0", "18.0", "21.5"]
    opened.keyboard.press("Enter")
    assert title.get_attribute("aria-sort") is None


def test_a_line_leads_to_its_source(opened: Any) -> None:
    opened.locator("#table-phases td a").first.click()
    source = opened.locator(":target").inner_text()
    assert source.startswith("[1] measured: ")
    assert "/scenes/evaluate/record.json @abc123def456" in source


def test_down_leads_to_a_part_of_the_whole(opened: Any, run_folder: Path) -> None:
    _, forest = next(iter(LabelStore(run_folder / "evaluate" / "phase3")))
    opened.get_by_role("application", name="SOHES phase 3").focus()
    status = opened.locator(".status")
    opened.keyboard.press("ArrowDown")
    seen = []
    for _ in range(len(forest)):  # to the first whole that has parts
        whole = int(status.get_attribute("data-region"))
        seen.append(whole)
        assert forest.parent[whole] == -1
        opened.keyboard.press("ArrowDown")
        part = int(status.get_attribute("data-region"))
        if part != whole:
            break
        opened.keyboard.press("ArrowRight")
    assert part not in seen
    assert forest.parent[part] == whole == int(status.get_attribute("data-parent"))
    assert "part 1 of" in status.inner_text()
    assert f"{int(forest.areas[part]):,} px" in status.inner_text()
    assert f"score {forest.scores[part]:.2f}" in status.inner_text()
    opened.keyboard.press("ArrowUp")
    assert int(status.get_attribute("data-region")) == whole
    opened.keyboard.press("Escape")
    assert status.get_attribute("data-region") is None


def test_pointing_chooses_and_the_others_answer(opened: Any) -> None:
    canvas = opened.get_by_role("application", name="ground truth").locator("canvas")
    canvas.hover(position={"x": 10, "y": 10})
    assert "ground truth" in opened.locator(".status").inner_text()
    answer = opened.locator(".panel", has_text="SOHES phase 3").locator(".has")
    assert answer.inner_text() == "IoU 1.00"  # phase 3 is the truth itself


def test_its_picture_is_small(browser: Any, address: str, tmp_path: Path) -> None:
    path = take(browser, Path(address.removeprefix("file://")), tmp_path / "page.png")
    assert path.stat().st_size < 300_000


def test_the_slider_cuts(opened: Any) -> None:
    opened.locator("#count").fill("2")
    assert opened.locator(".panel", has_text="SOHES phase 3").locator(".has").inner_text() == "2 regions"
    assert opened.locator("#shown").inner_text() == "2"
