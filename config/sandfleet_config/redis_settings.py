"""The settings of connections to Redis: TLS, and how many replicas must have what was written."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from sandfleet_config.section import Section


class RedisSettings(Section):
    """How producers, workers, Flower and `sandfleet-web` talk to Redis."""

    ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) that sign Redis's own, for rediss:// and sentinels://."
    )
    cert_file: Path | None = Field(default=None, description="Certificate (PEM) that this client shows to Redis.")
    key_file: Path | None = Field(default=None, description="Private key (PEM) of `cert_file`.")
    replicas: int | None = Field(
        default=None,
        ge=0,
        le=16,
        description="Replicas that must have a job before submit returns, and a claim before it starts;"
        " unset: 1 with sentinel://, else 0.",
    )
    replica_seconds: float = Field(
        default=1.0,
        gt=0,
        le=5,
        description="How long one wait for replicas takes at most; of a worker, half its lease at most.",
    )
    failover_seconds: float = Field(
        default=30.0, ge=0, le=300, description="With sentinel://, how long a producer waits for a new primary."
    )

    @model_validator(mode="after")
    def _check_pair(self) -> RedisSettings:
        if (self.cert_file is None) != (self.key_file is None):
            msg = "cert_file and key_file go together: set both"
            raise ValueError(msg)
        return self
