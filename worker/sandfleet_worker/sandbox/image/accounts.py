"""Users and groups of an image, from its /etc/passwd and /etc/group.

Both files are hostile input: a malformed line is skipped, never guessed.
"""

import os
import re
import stat
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sandfleet_worker.system.supervised_thread import is_resource_error

NOBODY = 65534
"""The number of nobody:nogroup, which works in every image, listed or not."""

MAX_ID = 2**31 - 1
MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 10_000
MAX_EXTRA_GROUPS = 64
_FIELDS_OF_PASSWD = 7
_FIELDS_OF_GROUP = 4
_ACCOUNT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}\$?")
_ID = re.compile(r"[0-9]{1,10}")
_HOME = re.compile(r"(?:/[^/\x00-\x1f\x7f]+)+|/")
DEFAULT_HOME = "/"


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


def parse_passwd(text: str) -> dict[str, User]:
    """Parse passwd(5); the first entry of a name counts, as for getpwnam(3)."""
    users: dict[str, User] = {}
    for line in text.splitlines()[:MAX_ENTRIES]:
        fields = line.split(":")
        if len(fields) != _FIELDS_OF_PASSWD or not _ACCOUNT_NAME.fullmatch(fields[0]):
            continue
        uid, gid = parse_id(fields[2]), parse_id(fields[3])
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
        if (gid := parse_id(fields[2])) is not None:
            members = tuple(name for name in fields[3].split(",") if _ACCOUNT_NAME.fullmatch(name))
            groups.setdefault(fields[0], Group(gid=gid, members=members))
    return groups


def parse_id(text: str) -> int | None:
    """Return the number of a user or group; None if `text` is not one."""
    return int(text) if _ID.fullmatch(text, 0) and int(text) <= MAX_ID else None


def _parse_home(text: str) -> str:
    is_plain = _HOME.fullmatch(text) is not None and not {".", ".."} & set(text.split("/"))
    return text if is_plain else DEFAULT_HOME


def read_inside(tree: Path, *parts: str) -> str:
    """Return the text of a file of an unpacked image; "" if it is no plain file of at most 1 MiB.

    No symbolic link is followed: an image's etc/passwd may point to the host's.
    """
    try:
        folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
    except OSError as error:
        if is_resource_error(error):  # else the image would be packed without its users
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
    """Whether an absolute path of the image is a directory, reached without a symbolic link."""
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
