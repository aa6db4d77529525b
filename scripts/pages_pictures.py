"""Make the pictures of the pages for the docs, of a fleet in memory: `python scripts/pages_pictures.py`.

It needs chromium; it is run by hand when the pages change.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/support"))

from page_server import OPERATOR, new_users, running_pages  # noqa: E402
from pages_scene import JOB, NOW, new_scene  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from sandfleet_config.pages_settings import PagesSettings  # noqa: E402
from sandfleet_web.pages.site import Site, Sources  # noqa: E402

FOLDER = ROOT / "docs/how-to/img"
PICTURES = {
    "overview": ("", 900),
    "batch": ("batch?name=sweep-12", 620),
    "job": (f"job?id={JOB}", 640),
    "act": ("act?verb=cordon&target=host-07", 400),
}
"""Name of each picture: the page, and the height that is shown."""
WIDTH = 1180


def make_pictures() -> None:
    """Write the pictures."""
    scene = new_scene(NOW)
    sources = Sources(scene.state, scene.channel, scene.history, scene.acts)  # type: ignore[arg-type]  # the part that pages use
    site = Site(sources, new_users(), PagesSettings(), clock=lambda: NOW)
    FOLDER.mkdir(exist_ok=True)
    # The scene's day is today's: else each time has its day, and a picture of another day differs.
    today = patch("sandfleet_web.pages.text.time", SimpleNamespace(time=lambda: NOW))
    with today, running_pages(site) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        login: Any = {"username": OPERATOR[0], "password": OPERATOR[1]}
        for name, (path, height) in PICTURES.items():
            context = browser.new_context(viewport={"width": WIDTH, "height": height}, http_credentials=login)
            page = context.new_page()
            page.goto(f"{server.address}/fleet/{path}")
            page.screenshot(path=FOLDER / f"pages-{name}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    make_pictures()
