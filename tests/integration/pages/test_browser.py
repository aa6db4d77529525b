"""Every page in a real browser: nothing in the console, no other address, for keyboards and all screens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from page_server import OPERATOR, VIEWER, PageServer
from pages_scene import JOB, NOW, WAITING_JOB, Scene
from sandfleet.channel.fleet_state import FleetSummary, PreparedStarts
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

PAGES: Final = (
    "",
    "hosts",
    "host?name=host-07",
    "queues",
    "queue?name=rl",
    "queue?name=imports",
    "batches",
    "batch?name=sweep-12",
    "jobs",
    "jobs?q=code:TIMEOUT",
    f"job?id={JOB}",
    f"job?id={WAITING_JOB}",
    "images",
    "failures",
    "audit",
    "act?verb=drain&target=host-07",
    "act?verb=retry&batch=sweep-12",
)
SIZES: Final = ((1280, 800), (375, 740))
TABBED: Final = """() => [...document.querySelectorAll(
    "a[href], button:not([disabled]), input:not([type=hidden]), select, summary"
)].filter(one => one.getClientRects().length).map(one => one.outerHTML)"""
FOCUSED: Final = "() => document.activeElement === document.body ? '' : document.activeElement.outerHTML"
OVERFLOW: Final = "() => document.documentElement.scrollWidth - window.innerWidth"


class Watched:
    """A page of the browser whose console and requests are noted."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.address = address
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("request", lambda request: self._note(request.url))
        self.asked: list[str] = []

    def _note(self, url: str) -> None:
        self.asked.append(url)
        if not url.startswith(f"{self.address}/"):
            self.trouble.append(f"another address: {url}")

    def open(self, path: str) -> Page:
        """Open a page of the pages."""
        self.page.goto(f"{self.address}/fleet/{path}")
        return self.page


def new_context(browser: Browser, user: tuple[str, str] = OPERATOR, **options: Any) -> BrowserContext:
    return browser.new_context(http_credentials={"username": user[0], "password": user[1]}, **options)


@pytest.fixture
def watched(browser: Browser, server: PageServer) -> Iterator[Watched]:
    context = new_context(browser, viewport={"width": 1280, "height": 800})
    yield Watched(context, server.address)
    context.close()


@pytest.mark.parametrize(
    ("scheme", "width", "height"), [("light", 1280, 800), ("light", 375, 740), ("dark", 1280, 800)]
)
def test_no_page_has_trouble_or_is_hard_to_use(
    browser: Browser, server: PageServer, scheme: Any, width: int, height: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    faults: list[str] = []
    context = new_context(browser, viewport={"width": width, "height": height}, color_scheme=scheme)
    watched = Watched(context, server.address)
    for path in PAGES:
        page = watched.open(path)
        violations = Axe().run(page).response["violations"]
        faults += [f"{width} {path}: {one['id']}: {one['nodes'][0]['html'][:200]}" for one in violations]
        if page.evaluate(OVERFLOW) > 0:
            faults.append(f"{width} {path}: wider than the screen")
    faults += watched.trouble
    context.close()
    assert faults == []


@pytest.mark.parametrize("size", SIZES)
def test_tab_reaches_every_control(browser: Browser, server: PageServer, size: tuple[int, int]) -> None:
    context = new_context(browser, viewport={"width": size[0], "height": size[1]})
    watched = Watched(context, server.address)
    missed: list[str] = []
    for path in PAGES:
        page = watched.open(path)
        page.evaluate("() => { document.documentElement.dataset.refreshing || 0; }")
        wanted = page.evaluate(TABBED)
        reached = set()
        for _ in range(len(wanted) + 20):
            page.keyboard.press("Tab")
            reached.add(page.evaluate(FOCUSED))
        missed += [f"{path}: {one[:160]}" for one in wanted if one not in reached]
    context.close()
    assert missed == []


def test_pages_work_without_javascript(browser: Browser, server: PageServer, scene: Scene) -> None:
    context = new_context(browser, java_script_enabled=False)
    watched = Watched(context, server.address)
    page = watched.open("")
    page.get_by_role("link", name="Hosts", exact=True).first.click()
    page.get_by_role("link", name="host-07").click()
    page.get_by_role("link", name="Cordon…").click()
    page.get_by_label("Reason").fill("odd host")
    page.get_by_role("button", name="Cordon").click()
    assert "Cordon host: done" in page.inner_text("h1")
    page.get_by_role("link", name="Back").click()
    assert "odd host" in page.inner_text("main")
    page.get_by_role("link", name="Refresh").click()
    assert "odd host" in page.inner_text("main")
    assert [name for name, _ in scene.acts.done] == [OPERATOR[0]]
    assert watched.trouble == []
    context.close()


def test_a_page_is_read_again_and_keeps_the_focus(watched: Watched, scene: Scene) -> None:
    page = watched.open("")
    page.get_by_role("link", name="rl-eval").focus()
    change_waiting(scene, "rl-eval", 9876)
    page.wait_for_function("() => document.body.innerText.includes('9,876')")
    assert page.evaluate("() => document.activeElement.textContent") == "rl-eval"
    assert watched.trouble == []


def change_waiting(scene: Scene, queue: str, count: int) -> None:
    queues = tuple(replace(one, waiting={0: count}) if one.name == queue else one for one in scene.state.summary.queues)
    scene.state.summary = replace(scene.state.summary, queues=queues)


def test_a_page_asks_no_more_where_refresh_is_off_or_the_tab_is_hidden(watched: Watched) -> None:
    page = watched.open("")
    page.get_by_label("refresh").select_option("1")
    wait_until(lambda: _count(watched) >= 3, 10, "the page is read again each second")
    page.get_by_label("refresh").select_option("0")
    page.wait_for_timeout(300)
    before = _count(watched)
    page.wait_for_timeout(2500)
    assert _count(watched) == before

    page.get_by_label("refresh").select_option("1")
    wait_until(lambda: _count(watched) > before, 10, "it is read again")
    # What a browser does when another tab comes to the front.
    hide = """hidden => { Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
        document.dispatchEvent(new Event("visibilitychange")); }"""
    page.evaluate(hide, True)
    page.wait_for_timeout(300)
    before = _count(watched)
    page.wait_for_timeout(2500)
    assert _count(watched) == before
    page.evaluate(hide, False)
    wait_until(lambda: _count(watched) > before, 10, "the tab is in front again")
    assert watched.trouble == []


def _count(watched: Watched) -> int:
    watched.page.wait_for_timeout(50)
    return sum(url.endswith("/fleet/") for url in watched.asked)


def test_a_viewer_sees_no_button_that_acts(browser: Browser, server: PageServer) -> None:
    context = new_context(browser, VIEWER)
    watched = Watched(context, server.address)
    found: list[str] = []
    for path in PAGES:
        if not path.startswith("act"):
            page = watched.open(path)
            found += [
                f"{path}: {one}"
                for one in page.eval_on_selector_all("a[href*='act?']", "all => all.map(one => one.href)")
            ]
    context.close()
    assert found == []
    assert watched.trouble == []


HOSTILE: Final = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b[31m\x00" + "A" * 10_000


def test_hostile_names_stay_text(watched: Watched, scene: Scene) -> None:
    make_hostile(scene)
    page = watched.open("")
    for path in PAGES:
        page = watched.open(path.replace("host-07", "host-08"))
        assert page.evaluate("() => document.querySelectorAll('main script, main img, [onerror]').length") == 0, path
        text = page.inner_text("body")
        assert "\u202e" not in text, path
        assert "\x1b" not in text, path
        assert page.evaluate(OVERFLOW) <= 0, path
    page = watched.page
    summary = scene.state.summary
    tagged = replace(summary.workers[1], host="<script>alert(1)</script>")
    scene.state.summary = replace(summary, workers=(*summary.workers, tagged))
    page.wait_for_timeout(1100)  # an answer is kept for a second
    page = watched.open("hosts")
    assert "<script>alert(1)</script>" in page.inner_text("main")
    page.get_by_role("link", name="<script>alert(1)</script>", exact=True).click()
    assert "<script>alert(1)</script>" in page.inner_text("h1")
    assert [one for one in watched.trouble if "404" not in one] == []


def make_hostile(scene: Scene) -> None:
    """Give all texts that anybody may have written into Redis a hostile value."""
    name, summary = HOSTILE, scene.state.summary
    workers = tuple(
        replace(
            one,
            host=name if one.host == "host-01" else one.host,
            owner=name,
            queues=(name, *one.queues),
            warm={name: 3},
            prepared=PreparedStarts(1, {name: 3}, (name,)),
            labels={name: name},
            runsc=name,
            version=name,
            platform=name,
            unenforced=(name,),
        )
        for one in summary.workers
    )
    queues = tuple(replace(one, name=name) if one.name == "nightly" else one for one in summary.queues)
    scene.state.summary = FleetSummary(at=NOW, workers=workers, queues=queues, cordons=summary.cordons)
    overview = scene.channel.overview
    overview.entries = [entry._replace(name=name) if entry.name == "smoke" else entry for entry in overview.entries]
    overview.jobs = {
        job_id: replace(job, line=name, labels={name: name, "name": name}, why=name, image=name, queue=job.queue)
        for job_id, job in overview.jobs.items()
    }
    scene.history.runs = [
        replace(run, line=name, message=name, labels={"name": name}, host=name) for run in scene.history.runs[:200]
    ]
    scene.history.groups = [replace(group, message=name, image=name, top_host=name) for group in scene.history.groups]
    scene.history.state = replace(scene.history.state, fault=name)
    scene.state.audit = [
        replace(one, by=name, target=name, reason=name, action=name, result=name) for one in scene.state.audit
    ]
    scene.state.images = {name: [replace(image, name=name, digest=name) for image in scene.state.images["host-01"]]}
    scene.channel.dead = [letter.model_copy(update={"reason": name, "line": name}) for letter in scene.channel.dead]
