"""Announces in Redis what this worker's host has, so that others know where a job can run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from sandfleet_worker.delivery.host_report import encode_images
from sandfleet_worker.delivery.outages import can_pass
from sandfleet_worker.system.supervised_thread import Backoff, SupervisedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.delivery.host_report import HostReport
    from sandfleet_worker.delivery.ledger import Ledger

POLL_SECONDS = 0.5
"""Poll interval for changes, such as a new image."""
RENEW_SECONDS = 20.0
TTL_SECONDS = 120
IMAGES_SECONDS = 60.0
"""Interval of telling unchanged images, with the times of their last use."""
IMAGES_TTL_SECONDS = 180


class HostFacts(NamedTuple):
    """Description of a host.

    It is JSON as `placing.lua` reads it, and names and digests of its images and datasets.
    """

    text: str
    images: tuple[str, ...]


class Announcer:
    """Announces the result of `read_facts` when it changes, and every `RENEW_SECONDS`.

    It does so in a thread of its own, which also measures what the beats report. A measure that
    fails, such as of images on a disk with errors, is logged, and the worker goes on: jobs that need
    the image end with that reason.
    """

    def __init__(
        self,
        ledger: Ledger,
        read_facts: Callable[[], HostFacts],
        on_failure: Callable[[str], None],
        report: HostReport | None = None,
    ) -> None:
        self._ledger, self._read_facts, self._report = ledger, read_facts, report
        self._told_images = ""
        self._next_images = 0.0
        self._announced: HostFacts | None = None
        self._announced_at = 0.0
        self._measures = Backoff("host_measures", subject="the measure of the host and its images")
        self._thread = SupervisedThread(
            "announcer",
            self._step,
            on_failure,
            # Where the images cannot be read, jobs end with that reason, and the worker goes on.
            can_pass=lambda error: can_pass(error) or isinstance(error, OSError),
            backoff=Backoff("announcements"),
        )

    def start(self) -> None:
        """Announce for the first time, and go on.

        Raises:
            redis.RedisError: Redis is not there.
        """
        self._step()
        self._thread.start()

    def stop(self) -> None:
        """Announce no more: the announcement ends with the lease."""
        self._thread.stop()

    def _step(self) -> float:
        facts, now = self._read_facts(), time.monotonic()
        is_new = facts != self._announced or now - self._announced_at >= RENEW_SECONDS
        if is_new and self._ledger.announce(facts.text, facts.images, TTL_SECONDS):
            self._announced, self._announced_at = facts, now
        if self._report is not None:
            self._measure(self._report, now)
        return POLL_SECONDS

    def _measure(self, report: HostReport, now: float) -> None:
        try:
            images = encode_images(report.measure().images)
        except OSError as error:
            self._measures.note_failure(error)
            return
        self._measures.note_success()
        self._tell_images(images, now)

    def _tell_images(self, images: str, now: float) -> None:
        if images != self._told_images or now >= self._next_images:
            self._ledger.tell_images(images, IMAGES_TTL_SECONDS)
            self._told_images, self._next_images = images, now + IMAGES_SECONDS
