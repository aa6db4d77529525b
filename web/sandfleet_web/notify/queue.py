"""The webhooks in Redis: what is due, what is given up, and the log."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandfleet.channel.connection import Connections
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script
from sandfleet_config.webhooks import LOG_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sandfleet_config.settings import Settings

PACKAGE: Final = "sandfleet_web"
CHECKED_AT_ONCE: Final = 50
MILLI: Final = 1000


class TakenWebhook(NamedTuple):
    """A webhook as it is in Redis.

    `at` is when the batch was done, `first` when it was first taken (ms).
    """

    webhook_id: str
    batch: str
    endpoint: str
    at: int
    total: int
    codes: dict[str, int]
    attempts: int
    first: int
    reason: str = ""


class UnusableWebhook(NamedTuple):
    """A webhook that somebody else than our scripts has written."""

    webhook_id: str


class DeadWebhook(NamedTuple):
    """A webhook that was given up at `ended` (ms)."""

    ended: int
    webhook: TakenWebhook | UnusableWebhook


class LogLine(NamedTuple):
    """One attempt: delivered, failed, dead, or dropped unsent."""

    at: int
    webhook_id: str
    batch: str
    endpoint: str
    result: str
    reason: str


class WebhookQueue:
    """Takes webhooks for this process, and records how their attempts ended.

    It is safe for concurrent use. Each method raises `FleetUnavailable` if Redis is out of reach.
    """

    def __init__(self, settings: Settings) -> None:
        self._connections = Connections(settings)
        self._token = secrets.token_hex(8)

    def take(
        self, limit: int, *, lease_seconds: float, at_once: int, sending: Sequence[str]
    ) -> tuple[list[TakenWebhook | UnusableWebhook], int]:
        """Take up to `limit` webhooks that are due.

        Return also the number of others that were deleted as unusable. `sending` names the
        endpoints of webhooks that are on their way; no more than `at_once` go to one endpoint.
        """
        arguments = [limit, round(lease_seconds * MILLI), self._token, at_once, json.dumps(list(sending))]
        unusable, *rows = self._run("take", arguments)
        return [_parse(row) for row in rows], unusable

    def settle(
        self,
        webhook_id: str,
        result: str,
        reason: str,
        *,
        pause_seconds: float = 0.0,
        batch: str = "",
        endpoint: str = "",
    ) -> bool:
        """Record an attempt.

        Return False if another sender has the webhook now; then nothing was recorded.
        """
        arguments = [webhook_id, self._token, result, round(pause_seconds * MILLI), reason, batch, endpoint]
        return bool(self._run("settle", arguments))

    def check_batches(self) -> int:
        """Queue webhooks of batches that older workers have ended.

        Return how many batches were checked.
        """
        return int(self._run("check_batches", [CHECKED_AT_ONCE]))

    def list_dead(self, limit: int) -> list[DeadWebhook]:
        """Return the newest dead letters."""
        return [DeadWebhook(int(float(row[1])), _parse([row[0], *row[2:]])) for row in self._run("dead", [limit])]

    def requeue(self, webhook_ids: Iterable[str]) -> int:
        """Make dead letters due again; return how many there were."""
        return int(self._run("requeue", list(webhook_ids)))

    def read_log(self, limit: int) -> list[LogLine]:
        """Return the newest lines of the log, oldest first."""
        client: Any = self._connections.redis
        with self._connections.guard():
            entries = client.xrevrange(LOG_KEY, count=limit)
        return [_parse_line(entry, fields) for entry, fields in reversed(entries)]

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def _run(self, name: str, arguments: Iterable[Any]) -> Any:
        with self._connections.guard():
            return self._connections.script(read_script(name, PACKAGE))(args=[KEY_PREFIX, *arguments])


def _parse(row: Sequence[bytes]) -> TakenWebhook | UnusableWebhook:
    values = [value.decode(errors="replace") for value in row]
    webhook_id, batch, endpoint, at, total, codes, attempts, first, reason = values
    try:
        counts = {str(code): int(number) for code, number in json.loads(codes).items()}
        times = _parse_ms(at), _parse_ms(first or "0")
        numbers = int(total), int(attempts or 0)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return UnusableWebhook(webhook_id)
    return TakenWebhook(webhook_id, batch, endpoint, times[0], numbers[0], counts, numbers[1], times[1], reason)


def _parse_ms(text: str) -> int:
    """Return a time in ms.

    Raises:
        ValueError: it is no time of a calendar.
    """
    found = int(text)
    if not 0 <= found < 1 << 47:
        raise ValueError(text)
    return found


def _parse_line(entry: bytes, fields: dict[bytes, bytes]) -> LogLine:
    def read(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    at = int(entry.partition(b"-")[0])
    return LogLine(at, read(b"id"), read(b"batch"), read(b"endpoint"), read(b"result"), read(b"reason"))
