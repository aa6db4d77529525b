"""The settings of the pages of `sandfleet-web`: where they are served, who may see them, and act."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sandfleet_config.section import Section


class PagesSettings(Section):
    """How the pages are served, alone (`sandfleet-web serve`) or in Flower.

    In Flower address and port are Flower's.
    """

    address: str = Field(
        default="127.0.0.1", min_length=1, description="Where `sandfleet-web serve` listens; it speaks plain HTTP."
    )
    port: int = Field(default=5556, ge=0, le=65535, description="Its port; 0 takes a free one.")
    users_file: Path | None = Field(
        default=None,
        description="Who may see the pages, and who may act: `name role hash` a line; `sandfleet-web new-user` adds one.",
    )
    token_file: Path | None = Field(
        default=None, description="Tokens that may read `/fleet/api/v1/...`: `name role token` a line, mode 0600."
    )
    queue_age_seconds: float = Field(
        default=300.0, gt=0, description="A queue whose oldest job waits longer is named on the Overview."
    )
    queue_ages: dict[str, float] = Field(
        default={}, description='Other such ages by queue, as JSON: `{"nightly": 3600}`.'
    )
