"""The pages over a fleet in memory, and a real browser."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from page_server import PageServer, new_users, running_pages
from pages_scene import NOW, Scene, new_scene
from sandfleet_config.pages_settings import PagesSettings
from sandfleet_web.pages.site import Site, Sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser


def new_site(scene: Scene) -> Site:
    """Return a site over a scene, with the scene's clock."""
    sources = Sources(scene.state, scene.channel, scene.history, scene.acts)  # type: ignore[arg-type]  # the part that pages use
    return Site(sources, new_users(), PagesSettings(), clock=lambda: scene.now)


@pytest.fixture
def scene() -> Scene:
    return new_scene(NOW)


@pytest.fixture
def site(scene: Scene) -> Site:
    return new_site(scene)


@pytest.fixture
def server(site: Site) -> Iterator[PageServer]:
    with running_pages(site) as running:
        yield running


@pytest.fixture(scope="module")  # while it is open, playwright's event loop runs: no other test's could
def browser() -> Iterator[Browser]:
    """Start Debian's chromium; without it the test is skipped at home and fails where CI is set."""
    binary = shutil.which("chromium")
    if binary is None:
        missing = "chromium is not installed: scripts/setup.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its own sandbox needs rights that containers lack; it opens our pages only.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        running = playwright.chromium.launch(executable_path=binary, args=options)
        yield running
        running.close()
