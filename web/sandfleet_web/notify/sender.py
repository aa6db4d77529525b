"""Send what is due until told to stop; several senders may run."""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandfleet.errors import FleetUnavailable
from sandfleet_config.units import format_count

from sandfleet_web.notify.attempt import Answer, send
from sandfleet_web.notify.queue import UnusableWebhook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet_config.web_settings import WebhookSettings

    from sandfleet_web.notify.endpoint import Endpoint
    from sandfleet_web.notify.queue import TakenWebhook, WebhookQueue

POLL_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0
AT_ONCE_OF_ENDPOINT: Final = 4
"""A receiver that hangs has no more of the threads than these."""
FIRST_PAUSE_SECONDS: Final = 5.0
PAUSE_FACTOR: Final = 4.0
MAX_PAUSE_SECONDS: Final = 7200.0
JITTER: Final = 0.2
MOST_ATTEMPTS: Final = 200
"""Upper bound. Back-off allows fewer in 7 days; more means that senders died before they recorded an attempt."""
MILLI: Final = 1000

_log = logging.getLogger(__name__)


class Sender:
    """Takes webhooks, sends each in a thread, and records how that ended."""

    def __init__(self, queue: WebhookQueue, endpoints: Mapping[str, Endpoint], settings: WebhookSettings) -> None:
        self._queue, self._endpoints, self._settings = queue, endpoints, settings
        self._sending: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_stopping = False

    def stop(self) -> None:
        """Take no more webhooks; `run` returns when the attempts on their way have ended.

        For a signal handler.
        """
        self._is_stopping = True
        self._wake.set()

    def run(self) -> None:
        """Send until `stop` is called. An outage of Redis is logged and waited for."""
        is_reached, checked_at = True, float("-inf")
        with ThreadPoolExecutor(self._settings.at_once, "webhook") as threads:
            while not self._is_stopping:
                self._wake.clear()
                try:
                    if time.monotonic() - checked_at >= CHECK_SECONDS:
                        self._queue.check_batches()
                        checked_at = time.monotonic()
                    self._start_due(threads)
                except FleetUnavailable as error:
                    if is_reached:
                        _log.warning("webhooks wait: %s", error, extra={"action": "redis_lost"})
                    is_reached = False
                else:
                    if not is_reached:
                        _log.info("Redis is back", extra={"action": "redis_back"})
                    is_reached = True
                if not self._is_stopping:
                    self._wake.wait(POLL_SECONDS)

    def _start_due(self, threads: ThreadPoolExecutor) -> None:
        with self._lock:
            sending = list(self._sending.elements())
        free = self._settings.at_once - len(sending)
        if free <= 0:
            return
        # Twice the deadline: while this process lives, it has settled an attempt before its lease
        # ends.
        lease = 2 * self._settings.deadline_seconds + 1
        taken, unusable = self._queue.take(free, lease_seconds=lease, at_once=AT_ONCE_OF_ENDPOINT, sending=sending)
        if unusable:
            _log.warning("%d webhooks in Redis were unusable, and are deleted", unusable, extra={"action": "unusable"})
        for webhook in taken:
            name = "" if isinstance(webhook, UnusableWebhook) else webhook.endpoint
            with self._lock:
                self._sending[name] += 1
            threads.submit(self._deliver, webhook, name)

    def _deliver(self, webhook: TakenWebhook | UnusableWebhook, name: str) -> None:
        try:
            if isinstance(webhook, UnusableWebhook):
                self._settle_unusable(webhook)
            else:
                self._send(webhook)
        except FleetUnavailable as error:
            # Its lease ends, and it is sent again with the same id.
            _log.warning("the end of an attempt is not recorded: %s", error, extra={"action": "not_recorded"})
        except Exception:  # noqa: BLE001  the edge of a thread, which would lose it
            _log.exception("a webhook failed inside the sender; it is tried again", extra={"action": "failed_inside"})
        finally:
            with self._lock:
                self._sending[name] -= 1
            self._wake.set()

    def _settle_unusable(self, webhook: UnusableWebhook) -> None:
        reason = "its fields in Redis are unusable: something else than sandfleet wrote them"
        _log.warning("webhook %s: %s", webhook.webhook_id, reason, extra={"action": "unusable"})
        self._queue.settle(webhook.webhook_id, "dead", reason)

    def _send(self, webhook: TakenWebhook) -> None:
        endpoint = self._endpoints.get(webhook.endpoint)
        if endpoint is None:
            reason = (
                f"there is no endpoint {webhook.endpoint!a} in the settings of the sender (SANDFLEET_WEB__ENDPOINTS)"
            )
            self._settle(webhook, "dead", reason)
            return
        if is_deadly(webhook, time.time() * MILLI, self._settings.retry_seconds):
            reason = f"given up after {format_count(webhook.attempts - 1, 'attempt')}: no sender lived to record how they ended"
            self._settle(webhook, "dead", reason)
            return
        answer = self._send_once(endpoint, webhook)
        result, pause = decide(webhook, answer, time.time() * MILLI, self._settings.retry_seconds)
        reason = answer.describe()
        if result == "dead" and not answer.is_refused:
            reason = f"given up after {format_count(webhook.attempts, 'attempt')}: {reason}"
        self._settle(webhook, result, reason, pause)

    def _send_once(self, endpoint: Endpoint, webhook: TakenWebhook) -> Answer:
        """Send it; a fault of our own counts as a failed attempt, so that it is given up in time."""
        try:
            return send(endpoint, webhook, self._settings)
        except Exception as error:  # noqa: BLE001  what it may raise is not known
            # Not the text of the error: it may have the URL, and some URLs are secrets.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"the sender itself failed: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
            _log.error("%s", reason, extra={"action": "failed_inside"})
            return Answer(0, reason)

    def _settle(self, webhook: TakenWebhook, result: str, reason: str, pause: float = 0.0) -> None:
        names = {"batch": webhook.batch, "endpoint": webhook.endpoint}
        is_recorded = self._queue.settle(webhook.webhook_id, result, reason, pause_seconds=pause, **names)
        level = {"delivered": logging.INFO, "failed": logging.WARNING}.get(result, logging.ERROR)
        more = f"; the next attempt is in {pause:.0f} s" if result == "failed" else ""
        fate = "" if is_recorded else "; another sender has it now"
        _log.log(
            level,
            "webhook of batch %s to %s, attempt %d: %s",
            ascii(webhook.batch),
            ascii(webhook.endpoint),
            webhook.attempts,
            f"{reason}{more}{fate}",
            extra={"action": f"webhook_{result}", "webhook_id": webhook.webhook_id},
        )


def is_deadly(webhook: TakenWebhook, now: float, retry_seconds: float) -> bool:
    """Whether a webhook's time is over, and senders have died in its attempts; `now` is in ms."""
    return webhook.attempts > MOST_ATTEMPTS and now - webhook.first > retry_seconds * MILLI


def decide(webhook: TakenWebhook, answer: Answer, now: float, retry_seconds: float) -> tuple[str, float]:
    """Return the webhook's new state, and the seconds until the next attempt.

    The state is delivered, failed or dead. `now` is in ms. 410 ends it; anything but 2xx is tried
    again, last when `retry_seconds` are over.
    """
    if answer.is_delivered:
        return "delivered", 0.0
    left = retry_seconds - (now - webhook.first) / MILLI
    if answer.is_refused or left <= 0:
        return "dead", 0.0
    pause = min(FIRST_PAUSE_SECONDS * PAUSE_FACTOR ** max(0, min(webhook.attempts - 1, 20)), MAX_PAUSE_SECONDS)
    pause *= random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  no secret depends on it
    return "failed", min(pause, max(left, 1.0))
