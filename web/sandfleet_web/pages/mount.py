"""Mounts the pages in Flower: same port, same login, and Flower's own pages know viewers."""

from __future__ import annotations

import atexit
import hmac
from typing import TYPE_CHECKING, Any, Final, cast

from sandfleet_config.web_settings import WebSettings
from tornado import web

from sandfleet_web.history.writer import HistoryWriter
from sandfleet_web.pages.handler import READING
from sandfleet_web.pages.opening import open_site
from sandfleet_web.pages.routes import ROOT, ToRoot, new_routes
from sandfleet_web.pages.user_files import Viewer
from sandfleet_web.pages.users import TooManyChecks, Users, parse_basic

if TYPE_CHECKING:
    from sandfleet_web.pages.site import Site

OPEN: Final = (r"/healthcheck", r"/static/(.*)", r".*")
"""Flower's addresses that need no password, as it has them; a viewer's is not asked for there."""


def install(handlers: list[Any], settings: dict[str, Any]) -> None:
    """Add the pages to Flower's routes, and teach its own handlers what a viewer may not do.

    Raises:
        SettingsInvalid: the settings or a file of users cannot be used.
    """
    settings_of_web = WebSettings()
    pages = settings_of_web.web.pages
    site = open_site(settings_of_web, Users(pages.users_file, pages.token_file), is_mounted=True)
    # Flower has no end of ours: at its exit the transaction under way is finished.
    writer = HistoryWriter(settings_of_web)
    writer.start()
    atexit.register(writer.stop)
    settings["fleet_pages"] = True
    settings["find_flower_viewer"] = find_flower_viewer
    changed = [_guard(route, site) for route in handlers]
    handlers[:] = [*new_routes(site), *changed]


def find_flower_viewer(handler: web.RequestHandler) -> Viewer | None:
    """Return Flower's user who asks: whoever has a password of Flower's is an operator."""
    application: Any = handler.application
    options: Any = application.options
    given = parse_basic(handler.request.headers.get("Authorization", ""))
    if given is None:
        return None
    pair = ":".join(given).encode()
    # Each is compared in full, so that the time does not tell how much was right.
    pairs = cast("list[str]", options.basic_auth or [])
    known = [one for one in pairs if hmac.compare_digest(one.encode(), pair)]
    return Viewer(given[0], "operator") if known else None


def _guard(route: Any, site: Site) -> Any:
    """Return a route of Flower's whose handler knows the users' file."""
    # Flower writes its routes as tuples or as tornado's own class.
    parts: Any = route
    rule: Any = web.url(*parts) if isinstance(route, tuple) else route
    pattern, handler, name = rule.regex.pattern.removesuffix("$"), rule.handler_class, rule.name
    if pattern == "/":
        # Flower's own list of workers stays at /workers.
        return web.url("/", ToRoot, {"site": site, "to": ROOT.strip("/") + "/"}, name)
    if pattern in OPEN or pattern.startswith("/log"):
        return rule
    guarded = type(handler.__name__, (ViewersToo, handler), {"site": site})
    return web.url(pattern, guarded, rule.kwargs, name)


class ViewersToo:
    """A handler of Flower's: users of the users' file may look, and only operators may act."""

    site: Site
    viewer: Viewer | None = None

    async def prepare(self) -> None:
        """Find the user; a viewer's request that would change anything is refused.

        Raises:
            tornado.web.HTTPError: 403.
        """
        handler: Any = self
        given = handler.request.headers.get("Authorization", "")
        try:
            self.viewer = await self.site.users.find(given)
        except TooManyChecks:
            raise web.HTTPError(503, reason="Too many logins at once") from None
        if self.viewer is not None:
            handler.current_user = self.viewer.name
            if not self.viewer.may_act and handler.request.method not in READING:
                raise web.HTTPError(403, reason="Viewers may not act")
        waiting = super().prepare()  # type: ignore[misc]  # Flower's
        if waiting is not None:
            await waiting

    def render(self, *args: Any, **values: Any) -> Any:
        """Show a viewer no buttons: Flower hides them where it is read-only."""
        if self.viewer is not None and not self.viewer.may_act and "read_only" in values:
            values["read_only"] = True
        return super().render(*args, **values)  # type: ignore[misc]  # Flower's
