"""The first span of each job's trace: its submit. It continues the trace of the application."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from sandfleet_config.tracing import format_traceparent, open_provider

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.trace import Span

MAX_OPEN: Final = 10_000
"""Spans of submits that have not ended; the oldest of more end early."""


class SubmitTraces:
    """Makes a span for each job that is submitted; safe for threads."""

    def __init__(self, endpoint: str) -> None:
        """Open the exporter.

        Raises:
            SettingsInvalid: OpenTelemetry is not installed.
        """
        self._provider = open_provider(endpoint, "sandfleet", version("sandfleet"))
        self._tracer = self._provider.get_tracer("sandfleet")
        self._lock = threading.Lock()
        self._open: dict[str, Span] = {}

    def begin(self, job_id: str, batch: str | None) -> str:
        """Begin the span of a job's submit, and return its context, which travels with the job."""
        from opentelemetry.trace import SpanKind

        facts = {"sandfleet.job_id": job_id, **({"sandfleet.batch": batch} if batch else {})}
        span = self._tracer.start_span("sandfleet.submit", kind=SpanKind.PRODUCER, attributes=facts)
        with self._lock:
            oldest = self._open.pop(next(iter(self._open))) if len(self._open) >= MAX_OPEN else None
            self._open[job_id] = span
        if oldest is not None:
            oldest.end()
        return format_traceparent(span.get_span_context())

    def end(self, job_ids: Iterable[str]) -> None:
        """End the spans of jobs that are queued, or were refused."""
        with self._lock:
            spans = [self._open.pop(job_id, None) for job_id in job_ids]
        for span in spans:
            if span is not None:
                span.end()

    def close(self) -> None:
        """Send what is left."""
        with self._lock:
            spans, self._open = list(self._open.values()), {}
        for span in spans:
            span.end()
        self._provider.shutdown()
