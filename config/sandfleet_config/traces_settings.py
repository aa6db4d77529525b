"""The settings of traces, for producers and workers."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from sandfleet_config.section import Section


class TracesSettings(Section):
    """Where spans go. OpenTelemetry's own variables (``OTEL_...``) set the rest, such as sampling."""

    endpoint: str = Field(
        default="",
        description="Collector of traces, OTLP over HTTP: http://127.0.0.1:4318. Needs the extra `otel`. Empty: off.",
    )

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT")
        if parts.username is not None:
            raise ValueError("must have no user or password: OTEL_EXPORTER_OTLP_HEADERS takes them")
        return value
