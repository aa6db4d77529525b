"""The settings of the store, for producers and workers, and of a host's copies of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from sandfleet_config.fields import Bytes
from sandfleet_config.section import Section

MAX_TIMEOUT_SECONDS: Final = 90
"""A deletion and its retries end before its mark in Redis: `store.references.MARK_SECONDS`."""
SCHEMES: Final = ("file", "s3", "redis", "az", "gs")
REDIS_URL: Final = "redis:"
"""The URL of the store in the fleet's own Redis."""


class FilesSettings(Section):
    """The files of jobs on this host's disk.

    They are inputs that the store has, and files that the store does not have yet.
    """

    cache_dir: Path = Field(
        default=Path("/var/lib/sandfleet/files"), description="Objects of the store that jobs of this host have used."
    )
    cache_bytes: Bytes = Field(
        default=10 << 30, gt=0, description="All of them together; those that were not used for the longest time go."
    )
    spool_dir: Path = Field(
        default=Path("/var/lib/sandfleet/spool"), description="Files that jobs have left, until the store has them."
    )
    spool_bytes: Bytes = Field(default=4 << 30, gt=0, description="All of them together, of one worker.")


class StoreSettings(Section):
    """Where larger objects are: files of jobs, artifacts."""

    url: str = Field(
        default="",
        description="file:///FOLDER, s3://BUCKET/PREFIX, or redis: for the fleet's Redis. Empty: the folder of the"
        " `local` stack, else redis:.",
    )
    endpoint: str = Field(default="", description="http(s)://HOST:PORT of an S3 server; empty: Amazon's of the region.")
    region: str = Field(default="us-east-1", min_length=1, description="Region of the bucket.")
    access_key_id: SecretStr = Field(
        default=SecretStr(""), description="Access key of the bucket; needed for s3://. No other place is asked for it."
    )
    secret_access_key: SecretStr = Field(default=SecretStr(""), description="Secret key of the bucket.")
    ca_file: str = Field(
        default="", description="PEM file of the authority that signed the server's certificate; empty: the system's."
    )
    timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        le=MAX_TIMEOUT_SECONDS,
        description="A request to a bucket is given up if nothing moves for so long; it is tried again, for twice as long.",
    )
    deadline_seconds: float = Field(
        default=300.0,
        ge=0,
        description="How long an outcome waits while the store is down; then its artifacts are lost.",
    )
    redis_bytes: Bytes = Field(
        default=64 << 20, description="All objects together in redis:; one object may have 1 MiB."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in SCHEMES:
            msg = f"must start with file:///, s3:// or {REDIS_URL}"
            raise ValueError(msg)
        if "@" in parts.netloc or parts.query or parts.fragment:
            msg = "must have no user, password, ? or #: credentials have settings of their own"
            raise ValueError(msg)
        if parts.scheme == "redis" and value != REDIS_URL:
            msg = f"must be {REDIS_URL}, without an address: such a store is in the fleet's own Redis"
            raise ValueError(msg)
        if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
            msg = "must be file:// and an absolute path, such as file:///srv/sandfleet"
            raise ValueError(msg)
        if parts.scheme in {"s3", "az", "gs"} and not parts.netloc:
            msg = f"must name a bucket: {parts.scheme}://BUCKET or {parts.scheme}://BUCKET/PREFIX"
            raise ValueError(msg)
        return value

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc):
            msg = "must be http:// or https:// and a host, without user and password"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _check_credentials(self) -> StoreSettings:
        # Without them, the client would ask the cloud's metadata address.
        wanted = {
            "s3": (self.access_key_id, self.secret_access_key),
            "az": (self.access_key_id, self.secret_access_key),
        }
        wanted["gs"] = (self.secret_access_key, self.secret_access_key)
        if not all(secret.get_secret_value() for secret in wanted.get(self.scheme, ())):
            names = "SANDFLEET_STORE__SECRET_ACCESS_KEY"
            if self.scheme != "gs":
                names = f"SANDFLEET_STORE__ACCESS_KEY_ID and {names}"
            msg = f"{self.scheme}:// needs {names}; credentials are taken from nowhere else"
            raise ValueError(msg)
        return self

    @property
    def scheme(self) -> str:
        """The scheme of `url`, empty if there is no URL."""
        return urlsplit(self.url).scheme
