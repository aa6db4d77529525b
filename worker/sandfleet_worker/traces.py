"""The spans of a job's try on this worker: queue, claim, image, create, run, collect, cleanup.

They are made when the try is settled, from what was measured: no job waits for a span. The steps
are laid end to end from the moment in which the job's thread had it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import Category
from sandfleet_config.tracing import open_provider, read_traceparent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from sandfleet_config.outcome import Outcome

STEPS: Final = ("image", "create", "run", "collect", "cleanup")
_NANO: Final = 10**9


@dataclass(frozen=True, kw_only=True)
class TracedTry:
    """A try of a job; times are unix times.

    `parent` is the traceparent that came with the job, empty without one. `queued` is since when it
    waited for this try, `claimed` when this worker had it, `begun` when its thread had it.
    """

    parent: str
    queue: str
    attempt: int
    queued: float
    claimed: float
    begun: float
    is_final: bool


class JobTraces:
    """Makes the spans of tries and sends them; safe for threads."""

    def __init__(self, endpoint: str, host: str) -> None:
        """Open the exporter.

        Raises:
            SettingsInvalid: OpenTelemetry is not installed.
        """
        self._provider = open_provider(endpoint, "sandfleet-worker", version("sandfleet-worker"))
        self._tracer = self._provider.get_tracer("sandfleet-worker")
        self._host = host

    def note(self, told: TracedTry, outcome: Outcome) -> None:
        """Make the spans of a try that ended with `outcome`."""
        from opentelemetry import trace

        begin = min(told.queued, told.claimed)
        span = self._tracer.start_span(
            "sandfleet.attempt",
            context=read_traceparent(told.parent),
            kind=trace.SpanKind.CONSUMER,
            attributes=self._describe(told, outcome),
            start_time=_nano(begin),
        )
        if outcome.code.category is Category.HOST:
            span.set_status(trace.StatusCode.ERROR, outcome.code.value)
        inside = trace.set_span_in_context(span)
        self._add("queue", inside, begin, told.claimed)
        self._add("claim", inside, told.claimed, told.begun)
        at = told.begun
        for step in STEPS:
            seconds = getattr(outcome.timing, step)
            if seconds is not None:
                self._add(step, inside, at, at + seconds)
                at += seconds
        span.end(_nano(max(at, time.time())))

    def _add(self, name: str, inside: Context, start: float, end: float) -> None:
        span = self._tracer.start_span(f"sandfleet.{name}", context=inside, start_time=_nano(start))
        span.end(_nano(max(start, end)))

    def _describe(self, told: TracedTry, outcome: Outcome) -> Mapping[str, str | int | bool]:
        """Return facts of the try: no command, no environment, no output."""
        facts: dict[str, str | int | bool | None] = {
            "sandfleet.job_id": outcome.job_id,
            "sandfleet.batch": outcome.batch,
            "sandfleet.queue": told.queue,
            "sandfleet.attempt": told.attempt,
            "sandfleet.run": outcome.run,
            "sandfleet.code": outcome.code.value,
            "sandfleet.category": outcome.code.category.value,
            "sandfleet.exit_code": outcome.exit_code,
            "sandfleet.is_final": told.is_final,
            "sandfleet.warm": None if outcome.duration is None else outcome.runtime.warm,
            "sandfleet.start": outcome.start,
            "sandfleet.image_digest": outcome.image_digest,
            "host.name": self._host,
        }
        return {name: value for name, value in facts.items() if value is not None}

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _nano(seconds: float) -> int:
    return round(seconds * _NANO)
