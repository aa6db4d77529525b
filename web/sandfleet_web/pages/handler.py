"""The handlers' common part: who asks, what may be answered, and the frame of each page."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sandfleet.errors import FleetError
from tornado import httputil, web

from sandfleet_web.pages.reading import TooBusy
from sandfleet_web.pages.text import clean, clock
from sandfleet_web.pages.user_files import Viewer
from sandfleet_web.pages.users import TooManyChecks

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sandfleet_web.pages.site import Site

log = logging.getLogger(__name__)

POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
READING: Final = ("GET", "HEAD", "OPTIONS")
PAGES: Final = (
    ("./", "Overview"),
    ("hosts", "Hosts"),
    ("queues", "Queues"),
    ("batches", "Batches"),
    ("jobs", "Jobs"),
    ("images", "Images"),
    ("failures", "Failures"),
    ("audit", "Audit"),
)
MAX_ARGUMENT: Final = 4096
SCHEME: Final = 'Basic realm="sandfleet", charset="UTF-8"'


@dataclass
class Page:
    """A page before it is put into its frame.

    `refresh` is how often it is read again in seconds, 0 never; `as_of` the time of its data.
    """

    template: str
    title: str
    tab: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    refresh: int = 2
    as_of: float = 0.0
    status: int = 200
    uses_history: bool = True


def check_origin(request: httputil.HTTPServerRequest) -> None:
    """Refuse a request that another site's page has made in somebody's browser.

    Raises:
        tornado.web.HTTPError: 403.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None and site != "same-origin":
        raise web.HTTPError(403, reason="Cross-site request refused")
    # Without the header of newer browsers, Origin must say so; programs set it, too.
    if site is None and (origin is None or urlsplit(origin).netloc != request.host):
        raise web.HTTPError(403, reason="Cross-site request refused")


class SiteHandler(web.RequestHandler):
    """A handler that knows who asks before it does anything."""

    def initialize(self, site: Site) -> None:
        """Take what all handlers share."""
        self.site = site

    def set_default_headers(self) -> None:
        """Let the answer load nothing from elsewhere, be framed nowhere and be stored nowhere."""
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.clear_header("Server")

    def check_xsrf_cookie(self) -> None:
        """Do nothing: `prepare` compares origins, once it is known who asks."""

    async def prepare(self) -> None:
        """Find out who asks.

        Raises:
            tornado.web.HTTPError: 401, or 403 for a viewer who would act.
        """
        self._start_measuring()
        self.viewer = await self._find_viewer()
        if self.viewer is None:
            raise web.HTTPError(401)
        self.current_user = self.viewer.name
        if self.request.method not in READING:
            check_origin(self.request)
            if not self.viewer.may_act:
                raise web.HTTPError(403, reason="Viewers may not act")

    def _start_measuring(self) -> None:
        if not self.site.loop_lag.is_running:
            self.site.loop_lag.start()

    async def _find_viewer(self) -> Viewer | None:
        given = self.request.headers.get("Authorization", "")
        try:
            found = await self.site.users.find(given)
        except TooManyChecks:
            raise web.HTTPError(503, reason="Too many logins at once") from None
        return found or self.find_other_viewer()

    def find_other_viewer(self) -> Viewer | None:
        """Return the user of Flower who asks, where these pages are mounted in it."""
        find = self.settings.get("find_flower_viewer")
        return find(self) if find is not None else None

    def send(self, text: str | bytes) -> None:
        """Write the answer and end it."""
        self.finish(text)  # pyright: ignore[reportUnknownMemberType]  tornado's type has an open dict in it

    def argument(self, name: str, default: str = "") -> str:
        """Return an argument of the address, bounded.

        Raises:
            tornado.web.HTTPError: 400, it is too long.
        """
        value = self.get_query_argument(name, default, strip=True)
        if len(value) > MAX_ARGUMENT:
            raise web.HTTPError(400, reason=f"{name} is longer than {MAX_ARGUMENT} characters")
        return value

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002  tornado's
        """Answer with a sentence, and no more."""
        if status_code == 401:  # noqa: PLR2004
            self.set_header("WWW-Authenticate", SCHEME)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.send(f"{status_code}: {self._reason}\n")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log faults of ours, and no refusals."""
        if not isinstance(value, web.HTTPError):
            log.error("%s: %s", self.request.path, typ.__name__, exc_info=(typ, value, tb))


class PageHandler(SiteHandler):
    """A handler of pages for people."""

    async def answer(self, page: Awaitable[Page]) -> None:
        """Show a page; trouble of Redis or the history is shown as a page, too."""
        try:
            found = await page
        except web.HTTPError:
            raise
        except (FleetError, TooBusy, ValueError) as error:
            found = new_trouble(str(error), status=400 if isinstance(error, ValueError) else 503)
        await self.show(found)

    async def show(self, page: Page) -> None:
        """Write a page in its frame."""
        self._write_page(page, await self._read_foot(page))

    def _write_page(self, page: Page, foot: str) -> None:
        self.set_status(page.status)
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        searched = self.get_query_argument("q", "")[:MAX_ARGUMENT] if page.tab == "Jobs" else ""
        frame = {
            "page": page,
            "site": self.site,
            "viewer": self.viewer,
            "pages": PAGES,
            "foot": foot,
            "searched": searched,
        }
        self.send(self.site.render(page.template, now=self.site.clock(), **frame, **page.values))

    async def _read_foot(self, page: Page) -> str:
        """Say how old and how complete the data is."""
        words = [self._say_age(page)]
        if not page.uses_history:
            return words[0]
        try:
            status = await self.site.read_history_status()
        except (FleetError, TooBusy) as error:
            return " · ".join([*words, f"no history: {clean(str(error), 200)}"])
        if status is None:
            return " · ".join([*words, "no history here"])
        lag = round(status.lag_seconds)
        words.append(f"history {lag:,} s behind" if lag else "history up to date")
        words.append(f"{status.lost:,} ended runs lost")
        if status.fault:
            words.append(clean(status.fault, 200))
        return " · ".join(words)

    def _say_age(self, page: Page) -> str:
        return f"as of {clock(page.as_of or self.site.clock())} UTC"

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Show the refusal as a page to people who are known, else as one line."""
        if status_code == 401 or getattr(self, "viewer", None) is None:  # noqa: PLR2004
            super().write_error(status_code, **kwargs)
            return
        page = new_trouble(f"{status_code}: {self._reason}", status=status_code)
        self._write_page(page, self._say_age(page))


def new_trouble(message: str, *, status: int) -> Page:
    """Return the page that says what is wrong."""
    return Page(
        "trouble.html",
        "Not available" if status == 503 else "Not done",  # noqa: PLR2004
        "",
        {"message": message},
        refresh=5 if status == 503 else 0,  # noqa: PLR2004
        status=status,
        uses_history=False,
    )


class JsonHandler(SiteHandler):
    """A handler of the read-only API: a token or the login."""

    async def _find_viewer(self) -> Viewer | None:
        kind, _, token = self.request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.site.users.find_token(token.strip())
        return await super()._find_viewer()

    def answer_json(self, value: Any) -> None:
        """Write a value as JSON."""
        self.set_header("Content-Type", "application/json")
        self.send(json.dumps(value, separators=(",", ":")))

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002  tornado's
        """Answer with the reason as JSON."""
        if status_code == 401:  # noqa: PLR2004
            self.set_header("WWW-Authenticate", SCHEME)
        self.answer_json({"error": "refused", "message": self._reason})
