"""Words that a shell offers at TAB: names of batches, states, codes, languages.

Bounded in time, and silent if Redis is down.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_config.settings import Settings

STATES: Final = ("queued", "waiting", "running", "ended")
ANSWER_SECONDS: Final = 0.5
"""Redis must connect and answer each command within so long."""
SCAN_SECONDS: Final = 0.5
"""The search for batches ends after so long, with those found by then."""
MAX_NAMES: Final = 200
SCANNED_KEYS: Final = 1000
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_%+,./:=@][A-Za-z0-9_%+,./:=@-]*")
"""Names that need no quotes in a shell; no others are offered.

Bash does not quote the names that it is offered, and zsh evaluates them. So ``$(...)`` in the name
of another user's batch would run.
"""


def of_words(*words: str) -> Callable[[str], list[str]]:
    """Return a completion that offers `words`."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


complete_state: Final = of_words(*STATES)


def complete_code(incomplete: str) -> list[str]:
    """Offer error codes; the last one of a list with commas."""
    from sandfleet_config.codes import ErrorCode

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{code.value}" for code in ErrorCode if code.value.startswith(last.upper())]


def complete_language(incomplete: str) -> list[str]:
    """Offer the names of languages that are built in."""
    from sandfleet.languages.table import read_table

    return [name for name in read_table() if name.startswith(incomplete)]


def complete_batch(incomplete: str) -> list[str]:
    """Offer names of batches; nothing if Redis is out of reach."""
    try:
        return sorted(set(_find_batches(incomplete)))
    except Exception:  # noqa: BLE001  a traceback at TAB would spoil the command line
        return []


def _find_batches(begin: str) -> Iterator[str]:
    from sandfleet_config.queues import batch_key
    from sandfleet_config.settings import Settings

    client = _connect(Settings())
    prefix = batch_key("")
    until, cursor, found = time.monotonic() + SCAN_SECONDS, 0, 0
    while found < MAX_NAMES and time.monotonic() < until:
        cursor, keys = client.scan(cursor, match=f"{_escape(prefix + begin)}*", count=SCANNED_KEYS)
        for key in keys:
            name = key.decode(errors="replace").removeprefix(prefix)
            if _PLAIN_NAME.fullmatch(name):
                found += 1
                yield name
        if not cursor:
            return


def _connect(settings: Settings) -> Any:
    from redis.backoff import NoBackoff
    from redis.retry import Retry
    from sandfleet_config.redis_client import new_client

    return new_client(
        settings,
        protocol=2,
        socket_connect_timeout=ANSWER_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def _escape(text: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in text)
