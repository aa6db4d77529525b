"""The settings of a worker's metrics."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import Field, model_validator

from sandfleet_config.section import Section


class MetricsSettings(Section):
    """Where a worker serves its metrics to Prometheus: `http://ADDRESS:PORT/metrics`."""

    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of a worker's metrics; each worker of a host has its own. With `processes`, the first has this"
        " port, and each other the next one. 0: off.",
    )
    address: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address of a worker's metrics; another than loopback needs a token.",
    )
    token_file: Path | None = Field(
        default=None, description="File with mode 0600 that has the bearer token which may read a worker's metrics."
    )

    @model_validator(mode="after")
    def _need_token(self) -> MetricsSettings:
        if self.port and self.token_file is None and not _is_loopback(self.address):
            raise ValueError("metrics on another address than loopback need SANDFLEET_METRICS__TOKEN_FILE")
        return self


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
