"""One image of this host: its facts, read from an unpacked tree or from image.json."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.accounts import (
    Group,
    User,
    is_real_directory,
    parse_group,
    parse_passwd,
    read_inside,
)
from sandfleet_worker.sandbox.image.kind import Kind
from sandfleet_worker.sandbox.image.oci import ImageConfig
from sandfleet_worker.sandbox.image.pack import JOB_FOLDERS, MOUNT_POINTS, hash_whole
from sandfleet_worker.system.supervised_thread import is_resource_error

FORMAT = 1
_SYSTEM_FOLDERS = ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr")


class Image(BaseModel):
    """One image of this host, as image.json holds it.

    `name` is the name that it was looked up by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    name: str
    digest: str
    erofs_path: Path
    size_bytes: int = Field(description="Of image.erofs.")
    erofs_sha256: str
    created: datetime = Field(description="When it was added to this host.")
    source: str
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    users: dict[str, User] = {}
    groups: dict[str, Group] = {}
    directories: frozenset[str] = Field(
        default=frozenset(),
        description="Mount points and users' homes that are real directories, where a tmpfs can be mounted.",
    )

    def has_directory(self, path: str) -> bool:
        """Whether a mount point or a user's home is a directory, reached without a link."""
        return path in self.directories

    @property
    def is_outdated(self) -> bool:
        """Whether a release that did not add ``/work`` and ``/data`` packed it: add it again."""
        return not any(self.has_directory(f"/{name}") for name in JOB_FOLDERS)


def describe(tree: Path, erofs: Path, config: ImageConfig) -> Image:
    """Return the facts of an unpacked tree; the caller fills in name, digest and source."""
    users = parse_passwd(read_inside(tree, "etc", "passwd"))
    return Image(
        name="",
        digest="",
        erofs_path=erofs,
        size_bytes=erofs.stat().st_size,
        erofs_sha256=hash_whole(erofs),
        created=datetime.now(UTC),
        source="",
        env=config.env,
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        working_dir=config.working_dir,
        user=config.user,
        users=users,
        groups=parse_group(read_inside(tree, "etc", "group")),
        directories=frozenset(path for path in list_mountable(users) if is_real_directory(tree, path)),
    )


def list_mountable(users: Mapping[str, User]) -> set[str]:
    """Return the paths for a tmpfs, if they are directories: mount points and users' homes."""
    homes = {user.home for user in users.values() if _is_own_home(user.home)}
    return homes | {f"/{name}" for name in (*MOUNT_POINTS, *JOB_FOLDERS)}


def _is_own_home(home: str) -> bool:
    # The home of Debian's `daemon` is /usr/sbin: a writable home mounted there would hide the
    # system's programs.
    return home.split("/")[1] not in {"", *_SYSTEM_FOLDERS}


def read_image(path: Path, digest: str, name: str, erofs_size: int, kind: Kind = Kind.IMAGE) -> Image:
    """Read image.json at `path`; the other arguments must match it.

    Raises:
        ImageInvalid: it is damaged, or belongs to another image.
    """
    try:
        raw = json.loads(path.read_bytes())
        image = Image.model_validate({**raw, "name": name, "erofs_path": path.with_name("image.erofs")})
    except (OSError, ValueError, TypeError, ValidationError) as error:
        if is_resource_error(error):
            raise
        raise damaged(name, "image.json cannot be read", kind) from error
    if image.digest != digest or image.format != FORMAT or image.size_bytes != erofs_size:
        raise damaged(name, "its files do not belong together", kind)
    return image


def damaged(name: str, why: str, kind: Kind = Kind.IMAGE) -> ImageInvalid:
    """Return the error of a damaged image or dataset, with the command that repairs it."""
    return ImageInvalid.of(
        f"{kind} {name} is damaged ({why}): `sandfleet-worker {kind}s rm {name}`, then `{kind}s add` it again"
    )
