"""The settings of a host about images: where it keeps them, and what it pulls from registries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from sandfleet_config.fields import Bytes
from sandfleet_config.image_names import REGISTRY_PREFIX, is_shared_pattern
from sandfleet_config.section import NameList, Section

OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]


class ImagesSettings(Section):
    """Where this host keeps images, and what it pulls from registries."""

    root: Path = Field(default=Path("/var/lib/sandfleet/images"), description="Packed images, one EROFS file a digest.")
    pull_from: NameList = Field(
        default=(),
        description="Registries and images that jobs may have pulled (`docker://...`): glob patterns such as"
        " `registry.example`, `registry.example/team/*`, `python`; empty: none.",
    )
    shared: NameList = Field(
        default=(),
        description="Images that this host takes from the fleet's store (`images push`): glob patterns of names such as"
        " `team/*`, or `NAME@sha256:...`; `*`: whatever anybody shares who may write to Redis; empty: none.",
    )
    tag_ttl: float = Field(
        default=600.0, ge=0, description="Seconds for which a host takes a tag of a registry for what it last meant."
    )
    auth_file: OptionalPath = Field(
        default=None,
        description="Passwords of registries, as `skopeo login --authfile` writes them; only its owner may read it (0600).",
    )
    ca_dir: OptionalPath = Field(
        default=None, description="Folder with certificates (`*.crt`) of registries that a private CA has signed."
    )
    max_bytes: Bytes = Field(
        default=50 << 30,
        ge=0,
        description="Pulled and shared images that a host keeps; past it the least recently used go. Others stay.",
    )
    disk_high_percent: int = Field(
        default=90, ge=1, le=100, description="A pull first removes pulled images while their disk is fuller than this."
    )
    pull_deadline_seconds: float = Field(
        default=600.0, gt=0, le=3000, description="A pull that takes longer is given up."
    )
    debian_mirror: str = Field(
        default="",
        description="Mirror of Debian that recipes are built from; empty: the one that apt uses on this host.",
    )
    build_cache_bytes: Bytes = Field(
        default=4 << 30, ge=0, description="Packages that builds of recipes keep in `root`/cache between them, at most."
    )

    @field_validator("pull_from")
    @classmethod
    def _check_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            rest = pattern.removeprefix(REGISTRY_PREFIX)
            if not rest or "://" in rest or any(char.isspace() for char in rest):
                msg = "must be patterns such as registry.example, registry.example/team/*, python:3.* or team/*"
                raise ValueError(msg)
        return value

    @field_validator("shared")
    @classmethod
    def _check_shared(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(is_shared_pattern(pattern) for pattern in value):
            msg = "must be patterns such as python-data, team/* or team/judge@sha256:..., without docker://"
            raise ValueError(msg)
        return value
