"""The settings of `sandfleet-web`: its pages, endpoints of webhooks, and how they are sent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, model_validator

from sandfleet_config.pages_settings import PagesSettings
from sandfleet_config.section import Section
from sandfleet_config.settings import LOCAL_HISTORY, NESTED, Settings, setting_names

EndpointName = Annotated[  # webhooks.ENDPOINT_NAME, in the dialect of pydantic
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
]
DEFAULT_HISTORY: Final = Path("/var/lib/sandfleet/history.db")
ENDPOINTS_VARIABLE: Final = "SANDFLEET_WEB__ENDPOINTS"
"""The variable of all endpoints, and the beginning of those of each field of one."""


class EndpointSettings(Section):
    """A receiver of webhooks. Its URL is not logged: some receivers have a secret in it."""

    url: SecretStr = Field(description="https://...; http:// only with allow_private.")
    secret_file: Path = Field(description="File with mode 0600 that has one secret a line, whsec_...: each signs.")
    allow_private: bool = Field(default=False, description="Connect to private, loopback and link-local addresses too.")
    ca_file: Path | None = Field(default=None, description="Certificates (PEM) to trust instead of the system's.")

    @model_validator(mode="after")
    def _check_url(self) -> EndpointSettings:
        url = self.url.get_secret_value()
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("url must be printable ASCII without spaces: write it percent-encoded, its host as xn--")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must be https://HOST/PATH")
        if parts.scheme == "http" and not self.allow_private:
            raise ValueError("url must begin with https://; http:// needs allow_private=true")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise ValueError("url must have no user, password or #fragment")
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("url has a port that is no number from 0 to 65535") from None
        return self


class HistorySettings(Section):
    """The history of ended runs: its file, and how much of it is kept."""

    file: Path | None = Field(
        default=None,
        description="The file; by default that of the `local` stack, else /var/lib/sandfleet/history.db.",
    )
    ok_days: float = Field(default=3.0, gt=0, le=3650, description="Runs that ended OK are deleted after so many days.")
    failed_days: float = Field(default=30.0, gt=0, le=3650, description="Others are deleted after so many days.")
    max_rows: int = Field(
        default=5_000_000,
        gt=0,
        le=100_000_000,
        description="Runs that are kept at most, of some 700 bytes each. Of too many, the oldest that ended OK go first.",
    )


class WebhookSettings(Section):
    """How `sandfleet-web notify` sends webhooks, and the sections of its other parts."""

    endpoints: dict[EndpointName, EndpointSettings] = Field(
        default={},
        description="Endpoints by name, as JSON; or a variable a field, such as SANDFLEET_WEB__ENDPOINTS__CI__URL.",
    )
    connect_seconds: float = Field(
        default=5.0, gt=0, le=60, description="Deadline of a webhook's connection; that of its DNS is the same."
    )
    deadline_seconds: float = Field(default=20.0, gt=0, le=300, description="Deadline of one attempt as a whole.")
    retry_seconds: float = Field(
        default=86400.0, ge=0, le=7 * 86400, description="A webhook is given up so long after its first attempt."
    )
    at_once: int = Field(default=8, gt=0, le=64, description="Webhooks that one process sends at once.")
    pages: PagesSettings = PagesSettings()
    history: HistorySettings = HistorySettings()


class WebSettings(Settings):
    """The settings of `sandfleet-web`."""

    web: WebhookSettings = WebhookSettings()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="The worker's log level."
    )
    log_format: Literal["line", "json"] = Field(
        default="line", description="How logs are written: a line for people, or one JSON object a line (ECS)."
    )

    @property
    def history_file(self) -> Path:
        """The history file in force."""
        if self.web.history.file is not None:
            return self.web.history.file
        # Resolved, since it is a link there, and SQLite has its journal beside the file itself.
        return (self.local_dir / LOCAL_HISTORY).resolve() if self.is_local else DEFAULT_HISTORY


def web_setting_names() -> set[str]:
    """Return the variables of `WebSettings`, without those of single endpoints."""
    return {name for name, *_ in setting_names(WebSettings)}


def is_endpoint_variable(name: str) -> bool:
    """Whether `name` is the variable of one field of one endpoint.

    The endpoint's name is the user's.
    """
    _, begins, rest = name.partition(f"{ENDPOINTS_VARIABLE}{NESTED}")
    endpoint, _, field = rest.partition(NESTED)
    return bool(begins) and bool(endpoint) and field.lower() in EndpointSettings.model_fields
