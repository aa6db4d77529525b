"""Webhooks of batches: the names of endpoints, and the keys of what is sent."""

from __future__ import annotations

import re
from typing import Final

from sandfleet_config.queues import KEY_PREFIX

ENDPOINT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
WEBHOOK_ID: Final = re.compile(r"msg_[0-9a-f]{40}\Z")
MAX_WEBHOOKS: Final = 10_000
"""Webhooks that are due, dead letters of them, and lines of the log: so many of each are kept."""

DUE_KEY: Final = f"{KEY_PREFIX}webhooks:due"
DEAD_KEY: Final = f"{KEY_PREFIX}webhooks:dead"
LOG_KEY: Final = f"{KEY_PREFIX}webhooks:log"


def check_endpoint(name: str) -> str:
    """Return `name` if an endpoint may have it, or if it is empty.

    Raises:
        ValueError: it may not; the message says why.
    """
    if name and not ENDPOINT_NAME.match(name):
        msg = (
            f"on_done is the name of an endpoint in the settings of the sender, no URL: 1 to 64 of a-z 0-9 _ -,"
            f" not {name[:64]!a}"
        )
        raise ValueError(msg)
    return name
