"""Counters of a worker for Prometheus: its jobs and its calls to Redis.

Plain numbers under one lock: some microseconds a job (`tests/unit/test_worker_metrics.py` measures
it). A worker without metrics has no `JobCounts`, and counts nothing.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from sandfleet_worker.metrics.busiest_names import BusiestNames
from sandfleet_worker.metrics.histogram import MEMORY_BOUNDS, QUEUE_BOUNDS, RUN_BOUNDS, STEP_BOUNDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.outcome import Outcome

MAX_QUEUES: Final = 20
MAX_HOSTS: Final = 8
"""A worker counts tries of other hosts only if it takes their jobs over."""
REVIEW_SECONDS: Final = 300.0
STARTS: Final = ("cold", "warm", "prepared")
STEPS: Final = ("image", "create", "run", "collect", "cleanup")
UNKNOWN_CODE: Final = "UNKNOWN"


class CallTimes:
    """How often a script was called, and for how many seconds in all."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0


class JobCounts:
    """Counts since the worker's start; safe for threads. Keys are labels, each a closed set."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.Lock()
        """Held by whoever reads the tables."""
        self._clock, self._next_review = clock, clock() + REVIEW_SECONDS
        self._queues, self._hosts = BusiestNames(MAX_QUEUES), BusiestNames(MAX_HOSTS)
        self.started: dict[str, int] = defaultdict(int)
        self.ended: dict[tuple[str, ErrorCode], int] = defaultdict(int)
        self.attempts: dict[tuple[str, ErrorCode], int] = defaultdict(int)
        self.queued: dict[str, Histogram] = defaultdict(lambda: Histogram(QUEUE_BOUNDS))
        self.ran: dict[str, Histogram] = defaultdict(lambda: Histogram(RUN_BOUNDS))
        self.steps: dict[str, Histogram] = {step: Histogram(STEP_BOUNDS) for step in STEPS}
        self.boots: dict[str, Histogram] = {start: Histogram(STEP_BOUNDS) for start in STARTS}
        self.starts: dict[str, int] = dict.fromkeys(STARTS, 0)
        self.takes: dict[str, int] = {"hit": 0, "miss": 0}
        self.memory_peaks = Histogram(MEMORY_BOUNDS)
        self.cpu_seconds = 0.0
        self.calls: dict[str, CallTimes] = defaultdict(CallTimes)
        self.redis_errors = 0

    def note_start(self, queue: str) -> None:
        """Count the start of a job's program."""
        with self.lock:
            self.started[self._queues.find(queue)] += 1

    def note_attempt(self, host: str, code: ErrorCode) -> None:
        """Count the end of a try, final or not, on the host where it ran."""
        with self.lock:
            self.attempts[self._hosts.find(host), code] += 1

    def note_end(self, queue: str, outcome: Outcome) -> None:
        """Count the end of a job, and what it took."""
        timing = outcome.timing
        with self.lock:
            label = self._queues.find(queue)
            self.ended[label, outcome.code] += 1
            if timing.queued is not None:
                self.queued[label].observe(timing.queued)
            if outcome.duration is not None:
                self._note_program(label, outcome)

    def _note_program(self, label: str, outcome: Outcome) -> None:
        """Count what a program took that has started."""
        timing, usage = outcome.timing, outcome.usage
        start = outcome.start if outcome.start in STARTS else STARTS[0]
        self.ran[label].observe(outcome.duration or 0.0)
        for step, histogram in self.steps.items():
            seconds = getattr(timing, step)
            if seconds is not None:
                histogram.observe(seconds)
        if timing.create is not None:
            self.boots[start].observe(timing.create)
        self.starts[start] += 1
        self.takes["hit" if outcome.runtime.warm else "miss"] += 1
        if usage.cpu_seconds is not None:
            self.cpu_seconds += usage.cpu_seconds
        if usage.memory_peak_bytes is not None:
            self.memory_peaks.observe(usage.memory_peak_bytes)

    def note_call(self, script: str, seconds: float) -> None:
        """Count a call of a script, whether or not Redis answered."""
        with self.lock:
            times = self.calls[script]
            times.count += 1
            times.seconds += seconds

    def note_redis_error(self) -> None:
        """Count a call that Redis did not answer, or refused."""
        with self.lock:
            self.redis_errors += 1

    def review(self) -> None:
        """Choose anew, from time to time, which queues and hosts have series of their own."""
        with self.lock:
            if self._clock() < self._next_review:
                return
            self._next_review = self._clock() + REVIEW_SECONDS
            for queue in self._queues.review():
                self.started.pop(queue, None)
                self.queued.pop(queue, None)
                self.ran.pop(queue, None)
                _drop(self.ended, queue)
            for host in self._hosts.review():
                _drop(self.attempts, host)


def _drop(table: dict[tuple[str, ErrorCode], int], label: str) -> None:
    for key in [key for key in table if key[0] == label]:
        del table[key]
