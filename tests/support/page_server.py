"""The pages on a port of their own in a thread of the test, and requests to them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import threading
import urllib.parse
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sandfleet_web.pages.routes import new_application
from sandfleet_web.pages.users import Users
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_web.pages.site import Site

OPERATOR: Final = ("ann", "operators-secret")
VIEWER: Final = ("bob", "viewers-secret")


def spell(user: tuple[str, str] | None) -> dict[str, str]:
    """Return the header of a login."""
    return {} if user is None else {"Authorization": f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"}


def new_users() -> Users:
    """Return an operator and a viewer."""
    return Users(extra={OPERATOR[0]: ("operator", OPERATOR[1]), VIEWER[0]: ("viewer", VIEWER[1])})


@dataclass(frozen=True)
class Answer:
    """Status, headers and text of an answer."""

    status: int
    headers: dict[str, str]
    text: str


@dataclass
class PageServer:
    """A running server."""

    port: int
    errors: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        user: tuple[str, str] | None = OPERATOR,
        method: str = "GET",
        form: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request; `form` makes it a POST of this site's own page."""
        body = None if form is None else urllib.parse.urlencode(form).encode()
        own = {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.address} if body is not None else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST" if body is not None else method, path, body, own | spell(user) | (headers or {}))
            answer = connection.getresponse()
            text = answer.read().decode()
            return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, text)

    def get(self, path: str, user: tuple[str, str] = OPERATOR) -> str:
        """Return a page that must be there."""
        answer = self.ask(path, user)
        assert answer.status == 200, (path, answer.status, answer.text[:500])
        return answer.text


@contextlib.contextmanager
def running_pages(site: Site) -> Iterator[PageServer]:
    """Serve a site until the end of the context."""
    started: Future[int] = Future()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_serve, args=(loop, site, started))
    thread.start()
    try:
        yield PageServer(started.result(10))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def _serve(loop: asyncio.AbstractEventLoop, site: Site, started: Future[int]) -> None:
    asyncio.set_event_loop(loop)

    async def listen() -> HTTPServer:
        server = HTTPServer(new_application(site), max_header_size=65536)
        sockets = bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        started.set_result(sockets[0].getsockname()[1])
        return server

    server = loop.run_until_complete(listen())
    try:
        loop.run_forever()
    finally:
        server.stop()
        site.close()
        loop.run_until_complete(server.close_all_connections())
        loop.run_until_complete(asyncio.sleep(0.05))  # what was cancelled ends
        loop.run_until_complete(loop.shutdown_default_executor())
        asyncio.set_event_loop(None)
        loop.close()
