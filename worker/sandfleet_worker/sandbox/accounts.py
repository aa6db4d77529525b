"""Users and groups of an image: what its /etc/passwd and /etc/group say, and whom a job's `user` means.

Both files are the image's, so they are hostile input: a line that makes no sense is skipped, never guessed at.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from sandfleet_config.errors import UserInvalid

from sandfleet_worker.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.images import Image

NOBODY = 65534
"""nobody:nogroup: works in every image, listed or not."""

MAX_ID = 2**31 - 1
MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 10_000
MAX_EXTRA_GROUPS = 64
_FIELDS_OF_PASSWD = 7
_FIELDS_OF_GROUP = 4
_ACCOUNT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}\$?")
_ID = re.compile(r"[0-9]{1,10}")
_HOME = re.compile(r"(?:/[^/\x00-\x1f\x7f]+)+|/")
_DEFAULT_HOME = "/"


class User(BaseModel):
    """One line of passwd."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: int
    gid: int
    home: str


class Group(BaseModel):
    """One line of group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gid: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """Whom a job runs as, in numbers; `groups` are the supplementary ones, `name` is None for a bare number."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = _DEFAULT_HOME
    name: str | None = None


def resolve_user(image: "Image", user: str) -> ResolvedUser:
    """Return the numbers behind `name`, `uid`, `name:group`, `uid:gid`, or nothing (then the image's own user).

    As in Docker: a listed user brings its group, home and, unless a group is named, its supplementary groups.
    Unlike Docker, a number that passwd does not list gets itself as its group instead of root's. An image whose own
    user is root, or that names none, yields nobody:nogroup. Whether root is allowed is the host's policy to say.

    Raises:
        UserInvalid: a name which the image does not list, or no such form at all.
    """
    if user:
        return _resolve(image, user)
    own = _resolve(image, image.user) if image.user else None
    return own if own is not None and own.uid != 0 else _resolve(image, f"{NOBODY}:{NOBODY}")


def _resolve(image: "Image", text: str) -> ResolvedUser:
    user_text, separator, group_text = text.partition(":")
    if not user_text or (separator and not group_text):
        raise UserInvalid.of(f"user {text[:100]!r} is not one of `name`, `uid`, `name:group`, `uid:gid`")
    name, user = _find_user(image, user_text)
    groups: tuple[int, ...]
    if group_text:
        gid, groups = _find_group(image, group_text), ()
    else:
        gid, groups = user.gid, _extra_groups(image, name, user.gid)
    return ResolvedUser(uid=user.uid, gid=gid, groups=groups, home=user.home, name=name)


def _find_user(image: "Image", text: str) -> tuple[str | None, User]:
    if (uid := _parse_id(text)) is not None:
        listed = ((name, user) for name, user in image.users.items() if user.uid == uid)
        return next(listed, (None, User(uid=uid, gid=uid, home=_DEFAULT_HOME)))
    if text in image.users:
        return text, image.users[text]
    if text == "nobody":
        return text, User(uid=NOBODY, gid=NOBODY, home=_DEFAULT_HOME)
    raise UserInvalid.of(
        f"user {text[:100]!r} is not in the passwd of image {image.name}: use a number, or one of {_some(image.users)}"
    )


def _find_group(image: "Image", text: str) -> int:
    if (gid := _parse_id(text)) is not None:
        return gid
    if text in image.groups:
        return image.groups[text].gid
    if text == "nogroup":
        return NOBODY
    raise UserInvalid.of(
        f"group {text[:100]!r} is not in the group file of image {image.name}: "
        f"use a number, or one of {_some(image.groups)}"
    )


def _extra_groups(image: "Image", name: str | None, gid: int) -> tuple[int, ...]:
    gids = {group.gid for group in image.groups.values() if name is not None and name in group.members}
    return tuple(sorted(gids - {gid}))[:MAX_EXTRA_GROUPS]


def _some(names: dict[str, User] | dict[str, Group]) -> str:
    shown = 12
    listed = ", ".join([*names][:shown]) or "none (the image lists nobody)"
    return listed + (", ..." if len(names) > shown else "")


def parse_passwd(text: str) -> dict[str, User]:
    """Parse passwd(5); the first entry of a name counts, as for getpwnam(3)."""
    users: dict[str, User] = {}
    for line in text.splitlines()[:MAX_ENTRIES]:
        fields = line.split(":")
        if len(fields) != _FIELDS_OF_PASSWD or not _ACCOUNT_NAME.fullmatch(fields[0]):
            continue
        uid, gid = _parse_id(fields[2]), _parse_id(fields[3])
        if uid is not None and gid is not None:
            users.setdefault(fields[0], User(uid=uid, gid=gid, home=_parse_home(fields[5])))
    return users


def parse_group(text: str) -> dict[str, Group]:
    """Parse group(5)."""
    groups: dict[str, Group] = {}
    for line in text.splitlines()[:MAX_ENTRIES]:
        fields = line.split(":")
        if len(fields) != _FIELDS_OF_GROUP or not _ACCOUNT_NAME.fullmatch(fields[0]):
            continue
        if (gid := _parse_id(fields[2])) is not None:
            members = tuple(name for name in fields[3].split(",") if _ACCOUNT_NAME.fullmatch(name))
            groups.setdefault(fields[0], Group(gid=gid, members=members))
    return groups


def _parse_id(text: str) -> int | None:
    return int(text) if _ID.fullmatch(text, 0) and int(text) <= MAX_ID else None


def _parse_home(text: str) -> str:
    is_plain = _HOME.fullmatch(text) is not None and not {".", ".."} & set(text.split("/"))
    return text if is_plain else _DEFAULT_HOME


def read_inside(tree: Path, *parts: str) -> str:
    """Return the text of a file of an unpacked image, or "" where it is not a plain file of sensible size.

    No symbolic link is followed: an image's etc/passwd may point to the host's.
    """
    try:
        folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
    except OSError as error:
        if is_resource_error(error):  # nobody shall pack an image without its users
            raise
        return ""
    try:
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if is_resource_error(error):
            raise
        return ""
    finally:
        os.close(folder)
    with os.fdopen(file, "rb") as stream:
        facts = os.fstat(stream.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_FILE_BYTES:
            return ""
        return stream.read(MAX_FILE_BYTES).decode("utf-8", "replace")


def is_real_directory(tree: Path, path: str) -> bool:
    """Whether an absolute path of the image is a directory, with no symbolic link on the way."""
    current = tree
    for part in path.split("/"):
        if part:
            current = current / part
            try:
                facts = current.lstat()
            except OSError:
                return False
            if not stat.S_ISDIR(facts.st_mode):
                return False
    return True
