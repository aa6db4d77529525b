"""The facts of a shared image: the object whose SHA-256 is the image's digest.

It has the SHA-256 of the image file. Whoever may write to the store may have made the facts, so
they are checked as what an image itself says. Equal images have equal facts: the object has no
time, no name and no place.
"""

from __future__ import annotations

import hashlib
import json
import platform
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.accounts import Group, User, parse_group, parse_passwd
from sandfleet_worker.sandbox.image.image import FORMAT, Image, list_mountable
from sandfleet_worker.sandbox.image.oci import ImageConfig, parse_config

if TYPE_CHECKING:
    from pathlib import Path

MAX_FACTS_BYTES: Final = 4 << 20
SHARED_PREFIX: Final = "shared:"
"""The beginning of the source of an image that came from the fleet's store."""


class SharedFacts(BaseModel):
    """The facts of a packed image that a host needs beside its file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    machine: str = Field(description="What the image was packed for, as `platform.machine` says it.")
    erofs_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    env: list[str]
    entrypoint: list[str]
    cmd: list[str]
    working_dir: str
    user: str
    users: dict[str, User]
    groups: dict[str, Group]
    directories: list[str]

    @classmethod
    def of(cls, image: Image) -> SharedFacts:
        """Return the facts of an image of this host."""
        fields = image.model_dump(mode="json", include=set(cls.model_fields))
        groups = {name: group.model_dump(mode="json") for name, group in image.groups.items()}
        more = {"machine": platform.machine(), "directories": sorted(image.directories), "groups": groups}
        return cls.model_validate_json(json.dumps(fields | more))

    def encode(self) -> bytes:
        """Return the object's bytes, always the same for the same facts."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    def to_image(self, digest: str, source: str, erofs: Path) -> Image:
        """Return the image that a host makes of these facts and the file `erofs`."""
        fields = self.model_dump(mode="json", exclude={"machine"})
        return Image.model_validate(
            fields | {"name": digest, "digest": digest, "source": source, "erofs_path": erofs, "created": _now()}
        )


def digest_of(facts: bytes) -> str:
    """Return the digest of the shared image with these facts."""
    return f"sha256:{hashlib.sha256(facts).hexdigest()}"


def parse_facts(data: bytes, name: str) -> SharedFacts:
    """Parse the object that is the digest of image `name`.

    Raises:
        ImageInvalid: no host can have pushed it, or it is for hosts of another kind.
    """
    try:
        raw = json.loads(data)
        found = raw.get("format") if isinstance(raw, dict) else None
        if found != FORMAT:
            raise new_invalid(name, f"its facts have format {str(found)[:20]}, this release reads {FORMAT}")
        facts = SharedFacts.model_validate_json(data)
    except (ValueError, RecursionError) as error:
        fault = error.errors()[0]["loc"] if isinstance(error, ValidationError) else type(error).__name__
        raise new_invalid(name, f"its facts cannot be read ({str(fault)[:100]})") from None
    if fault := _find_fault(facts):
        raise new_invalid(name, fault)
    if facts.machine != platform.machine():
        raise new_invalid(name, f"it is for {facts.machine[:20]!r}, this host is {platform.machine()}", is_forged=False)
    return facts


def _find_fault(facts: SharedFacts) -> str:
    """Say what no image could have said of itself; empty if nothing is wrong."""
    raw: dict[str, Any] = {
        "Env": facts.env,
        "Entrypoint": facts.entrypoint,
        "Cmd": facts.cmd,
        "WorkingDir": facts.working_dir,
        "User": facts.user,
    }
    try:
        config = parse_config(raw)
    except ImageInvalid as error:
        return error.message
    told = ImageConfig(tuple(facts.env), tuple(facts.entrypoint), tuple(facts.cmd), facts.working_dir, facts.user)
    if config != told:
        return "its configuration has a variable without a value"
    users = "\n".join(f"{name}:x:{user.uid}:{user.gid}::{user.home}:" for name, user in facts.users.items())
    groups = "\n".join(f"{name}:x:{group.gid}:{','.join(group.members)}" for name, group in facts.groups.items())
    if parse_passwd(users) != facts.users or parse_group(groups) != facts.groups:
        return "its users or groups are no lines of passwd(5) and group(5)"
    if not set(facts.directories) <= list_mountable(facts.users):
        return "its directories are not those of an image"
    return ""


def new_invalid(name: str, why: str, *, is_forged: bool = True) -> ImageInvalid:
    """Return the error of a shared image that this host does not use, with what to do."""
    more = ": push it again (`sandfleet-worker images push`), and find out who wrote it" if is_forged else ""
    return ImageInvalid.of(f"shared image {name} is not used: {why}{more}")


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat()
