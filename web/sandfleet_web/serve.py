"""``sandfleet-web serve``: the pages alone, on a port of their own."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import threading
from contextlib import ExitStack
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from sandfleet_config.logs import set_up_handler
from sandfleet_config.terminal import write_line
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from sandfleet_web.history.writer import HistoryWriter
from sandfleet_web.notify.endpoint import read_endpoints
from sandfleet_web.notify.queue import WebhookQueue
from sandfleet_web.notify.sender import Sender
from sandfleet_web.pages.opening import open_site
from sandfleet_web.pages.routes import ROOT, new_application
from sandfleet_web.pages.users import Users

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.web_settings import WebSettings

    from sandfleet_web.pages.site import Site

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 1 << 20
MAX_HEADER_BYTES: Final = 65536
IDLE_SECONDS: Final = 75
NAME: Final = "sandfleet"


def run_pages(settings: WebSettings, *, is_notifying: bool = False) -> None:
    """Serve the pages and write the history until SIGTERM or SIGINT; `is_notifying` sends webhooks, too.

    Raises:
        SettingsInvalid: a file of users, of tokens or of an endpoint cannot be used.
        OSError: the port is taken.
    """
    set_up_handler(settings.log_format, settings.log_level, "sandfleet-web", version("sandfleet-web"))
    site = open_site(settings, read_users(settings, write_line))
    writer = HistoryWriter(settings)
    with ExitStack() as parts:
        if is_notifying:
            _start_sender(settings, parts)
        writer.start()
        parts.callback(writer.stop)
        asyncio.run(serve(site, settings))


def _start_sender(settings: WebSettings, parts: ExitStack) -> None:
    logging.getLogger("httpcore2").setLevel(logging.WARNING)  # its lines of level DEBUG have the URL
    queue = WebhookQueue(settings)
    parts.callback(queue.close)
    sender = Sender(queue, read_endpoints(settings), settings.web)
    thread = threading.Thread(target=sender.run, name="webhooks")
    thread.start()
    parts.callback(thread.join)
    parts.callback(sender.stop)


def read_users(settings: WebSettings, say: Callable[[str], None]) -> Users:
    """Return the users of the settings; without a file one user, whose password is made anew."""
    pages = settings.web.pages
    if pages.users_file is not None:
        return Users(pages.users_file, pages.token_file)
    password = secrets.token_urlsafe(12)
    say(f"user {NAME}, password made for this run: {password} (SANDFLEET_WEB__PAGES__USERS_FILE names users of yours)")
    return Users(None, pages.token_file, {NAME: ("operator", password)})


async def serve(site: Site, settings: WebSettings) -> None:
    """Serve a site until a signal comes."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = HTTPServer(
        new_application(site),
        max_body_size=MAX_BODY_BYTES,
        max_buffer_size=MAX_BODY_BYTES,
        max_header_size=MAX_HEADER_BYTES,
        idle_connection_timeout=IDLE_SECONDS,
    )
    pages = settings.web.pages
    sockets = bind_sockets(pages.port, pages.address)
    server.add_sockets(sockets)
    site.loop_lag.start()
    host = f"[{pages.address}]" if ":" in pages.address else pages.address
    log.info("the pages are at http://%s:%d%s/", host, sockets[0].getsockname()[1], ROOT)
    try:
        await stopped.wait()
    finally:
        server.stop()
        await server.close_all_connections()
        site.close()
    log.info("has stopped")
