"""Exit 0 if this container's worker answers a ping through Redis; the worker image's health check.

Kombu alone and one addressee: ``celery inspect ping`` takes three times the CPU, and wakes
every worker of the fleet.
"""  # noqa: INP001  a program, not a package

import os
import socket
import sys
from typing import Any

from kombu import Connection
from kombu.pidbox import Mailbox

# `sandfleet_config.queues.KEY_PREFIX`, whose import would double the cost; a test compares the two.
# TLS and sentinels need the worker's own settings, and pay for that.
KEY_PREFIX = "sandfleet:"
REPLY_SECONDS = 20


def new_connection(url: str) -> Connection:
    """Return a connection to the worker's Redis, which is checked as the worker's own are."""
    if url.startswith("redis://"):
        return Connection(url, transport_options={"global_keyprefix": KEY_PREFIX})
    from sandfleet_config.celery import shared_options
    from sandfleet_config.settings import WorkerSettings

    known = shared_options(WorkerSettings())
    tls, options = known.get("broker_use_ssl", False), known["broker_transport_options"]
    return Connection(known["broker_url"], ssl=tls, transport_options=options)


def is_answering(url: str, host: str) -> bool:
    """Ask the worker whose node name ends with this host's."""
    with new_connection(url) as connection:
        mailbox: Any = Mailbox("celery", type="fanout", accept=["json"])(connection)
        wanted = {"pattern": f"*@{host}", "matcher": "glob"}
        return bool(mailbox._broadcast("ping", reply=True, timeout=REPLY_SECONDS, limit=1, **wanted))  # noqa: SLF001


if __name__ == "__main__":
    sys.exit(
        not is_answering(os.environ["SANDFLEET_REDIS_URL"], os.environ.get("SANDFLEET_HOST") or socket.gethostname())
    )
