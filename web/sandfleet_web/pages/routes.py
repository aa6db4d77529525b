"""The addresses of all pages, all of one depth: their links are relative and work behind a prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tornado import web

from sandfleet_web.pages.act_page import ActPage
from sandfleet_web.pages.api import API, FleetMetrics, Question
from sandfleet_web.pages.audit_page import AuditPage
from sandfleet_web.pages.batches_page import BatchesPage, BatchPage
from sandfleet_web.pages.failures_page import FailuresPage
from sandfleet_web.pages.handler import HEADERS, PageHandler, SiteHandler
from sandfleet_web.pages.hosts_page import HostPage, HostsPage
from sandfleet_web.pages.images_page import ImagesPage
from sandfleet_web.pages.job_page import JobPage
from sandfleet_web.pages.jobs_page import JobsPage
from sandfleet_web.pages.overview_page import OverviewPage
from sandfleet_web.pages.queues_page import QueuePage, QueuesPage
from sandfleet_web.pages.site import STATIC, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = "/fleet"
YEAR_SECONDS: Final = 365 * 86400
PAGE_HANDLERS: Final[tuple[tuple[str, type[PageHandler]], ...]] = (
    ("", OverviewPage),
    ("hosts", HostsPage),
    ("host", HostPage),
    ("queues", QueuesPage),
    ("queue", QueuePage),
    ("batches", BatchesPage),
    ("batch", BatchPage),
    ("jobs", JobsPage),
    ("job", JobPage),
    ("images", ImagesPage),
    ("failures", FailuresPage),
    ("audit", AuditPage),
    ("act", ActPage),
)


class StaticFiles(SiteHandler, web.StaticFileHandler):
    """Style sheet, script and icon; for those who may see the pages."""

    def initialize(self, site: Site, path: str) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take both parents' arguments."""
        SiteHandler.initialize(self, site)
        web.StaticFileHandler.initialize(self, path)

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002  tornado's
        """Let browsers keep what has the version of today in its address."""
        is_current = self.get_query_argument("v", "") == self.site.version
        self.set_header("Cache-Control", f"private, max-age={YEAR_SECONDS}, immutable" if is_current else "no-cache")


class ToRoot(SiteHandler):
    """Leads to the Overview: the address `to` is relative, as all links are."""

    def initialize(self, site: Site, to: str) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take the address."""
        super().initialize(site)
        self.to = to

    async def get(self) -> None:
        """Redirect."""
        self.set_status(302)
        self.set_header("Location", self.to)
        self.send("")


def new_routes(site: Site) -> Sequence[Any]:
    """Return the routes of all pages, of the API and of static files."""
    routes: list[Any] = [
        web.url(f"{ROOT}/{name}", handler, {"site": site}, "fleet" if not name else None)
        for name, handler in PAGE_HANDLERS
    ]
    routes += [web.url(f"{ROOT}/api/v1/{name}", Question, {"site": site, "ask": ask}) for name, ask in API.items()]
    routes.append(web.url(f"{ROOT}/metrics", FleetMetrics, {"site": site}))
    routes.append(web.url(rf"{ROOT}/static/(.*)", StaticFiles, {"site": site, "path": str(STATIC)}))
    routes.append(web.url(ROOT, ToRoot, {"site": site, "to": "fleet/"}))
    return routes


class Health(web.RequestHandler):
    """Says that the server answers, to anybody, and no more."""

    def get(self) -> None:
        """Say it."""
        self.write("OK")  # pyright: ignore[reportUnknownMemberType]


class Nothing(web.RequestHandler):
    """Answers addresses without a page."""

    def set_default_headers(self) -> None:
        """As all pages."""
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Say that there is nothing."""
        raise web.HTTPError(404)

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ARG002  tornado's
        """Answer in one line."""
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        text = f"{status_code}: there is no page here; the pages begin at {ROOT}/\n"
        self.write(text)  # pyright: ignore[reportUnknownMemberType]


def _log_nothing(_handler: web.RequestHandler) -> None:
    pass


def new_application(site: Site) -> web.Application:
    """Return the application of the pages alone."""
    routes = [
        *new_routes(site),
        web.url("/", ToRoot, {"site": site, "to": "fleet/"}),
        web.url("/healthcheck", Health),
        web.url(".*", Nothing),
    ]
    # tornado's own log of requests is left out: it would have what people search for.
    return web.Application(routes, log_function=_log_nothing)
