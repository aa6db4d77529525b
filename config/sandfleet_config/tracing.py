"""Traces over OpenTelemetry: the exporter, and the context of a trace as W3C spells it.

OpenTelemetry is an extra. Nothing here imports it before a process that wants traces opens one.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.telemetry import allow_telemetry

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanContext

PATH: Final = "/v1/traces"
EXPORT_SECONDS: Final = 2.0
"""How long a batch of spans is tried: a command must not wait long for a collector that is down."""
TIMEOUT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_TIMEOUT"
TRACEPARENT: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})\Z")


def open_provider(endpoint: str, service: str, version: str) -> TracerProvider:
    """Return what makes spans and sends them to `endpoint`, in batches and in a thread of its own.

    Raises:
        SettingsInvalid: OpenTelemetry is not installed.
    """
    allow_telemetry()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        msg = f"SANDFLEET_TRACES__ENDPOINT needs OpenTelemetry ({error}): pip install '{service}[otel]'"
        raise SettingsInvalid(msg) from None
    resource = Resource.create({"service.name": service, "service.version": version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=True)
    seconds = None if TIMEOUT_VARIABLE in os.environ else EXPORT_SECONDS
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + PATH, timeout=seconds)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def format_traceparent(context: SpanContext) -> str:
    """Return a span's context as the W3C's traceparent."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def is_traceparent(text: object) -> bool:
    """Whether `text` is a context that a span may continue; a message may say anything."""
    return isinstance(text, str) and TRACEPARENT.match(text) is not None


def read_traceparent(text: str) -> Context | None:
    """Return the context of a traceparent; None of another text, so that a span begins a trace."""
    found = TRACEPARENT.match(text)
    if found is None:
        return None
    from opentelemetry import trace

    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    known: Any = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return trace.set_span_in_context(trace.NonRecordingSpan(known))
