"""The README's picture of the page: `python -m results.report.screenshot RUN/tables/report.html results/report.png`.

Needs Playwright (the extra `test`) and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from sohes.files import atomic_path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_VIEW = {"width": 1180, "height": 1000}
_COLOURS = 224  # of the PNG, which is a third as large for it


def chromium() -> str | None:
    """The browser's path, None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def take(browser: Any, page_file: Path, path: Path) -> Path:
    """From the top of the page to the forests, where a part of the last system's first whole is chosen.

    Args:
        browser: Playwright's, started.
    """
    page = browser.new_page(viewport=_VIEW, color_scheme="light")
    page.goto(page_file.resolve().as_uri())
    page.locator(".panels [role=application]").last.focus()
    for key in ("ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    page.evaluate("document.activeElement.blur()")
    end = page.evaluate("document.querySelector('.status').getBoundingClientRect().bottom + scrollY")
    clip = {"x": 0, "y": 0, "width": _VIEW["width"], "height": end + 32}
    picture = page.screenshot(full_page=True, clip=clip)
    page.close()
    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(_COLOURS, dither=Image.Dither.FLOYDSTEINBERG)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)
    return path


if __name__ == "__main__":
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(prog="python -m results.report.screenshot", description="A picture of the page.")
    parser.add_argument("page", type=Path, help="report.html of a run")
    parser.add_argument("picture", type=Path, help="PNG to write")
    options = parser.parse_args()
    if chromium() is None:
        parser.error(f"none of {', '.join(BROWSERS)} is installed; apt-get install chromium")
    with sync_playwright() as started:
        chosen = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        print(take(chosen, options.page, options.picture))
        chosen.close()
