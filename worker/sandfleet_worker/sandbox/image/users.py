"""Resolve a job's `user` in an image to the numbers of user, group and supplementary groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet_config.errors import UserInvalid

from sandfleet_worker.sandbox.image.accounts import DEFAULT_HOME, MAX_EXTRA_GROUPS, NOBODY, Group, User, parse_id

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.image.image import Image


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """The user that a job runs as, in numbers.

    `groups` are the supplementary ones, `name` is None for a bare number.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = DEFAULT_HOME
    name: str | None = None


def resolve_user(image: Image, user: str) -> ResolvedUser:
    """Return the numbers of `name`, `uid`, `name:group`, `uid:gid`, or "" (the image's own user).

    As in Docker: a listed user brings its group, home and, unless a group is named, its
    supplementary groups. Unlike Docker, a number that passwd does not list gets itself as its group
    instead of root's. An image whose own user is root, or that names none, yields nobody:nogroup.
    The host's policy decides whether root is allowed.

    Raises:
        UserInvalid: a name which the image does not list, or no such form at all.
    """
    if user:
        return _resolve(image, user)
    own = _resolve(image, image.user) if image.user else None
    return own if own is not None and own.uid != 0 else _resolve(image, f"{NOBODY}:{NOBODY}")


def _resolve(image: Image, text: str) -> ResolvedUser:
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


def _find_user(image: Image, text: str) -> tuple[str | None, User]:
    if (uid := parse_id(text)) is not None:
        listed = ((name, user) for name, user in image.users.items() if user.uid == uid)
        return next(listed, (None, User(uid=uid, gid=uid, home=DEFAULT_HOME)))
    if text in image.users:
        return text, image.users[text]
    if text == "nobody":
        return text, User(uid=NOBODY, gid=NOBODY, home=DEFAULT_HOME)
    raise UserInvalid.of(
        f"user {text[:100]!r} is not in the passwd of image {image.name}: use a number, or one of {_some(image.users)}"
    )


def _find_group(image: Image, text: str) -> int:
    if (gid := parse_id(text)) is not None:
        return gid
    if text in image.groups:
        return image.groups[text].gid
    if text == "nogroup":
        return NOBODY
    raise UserInvalid.of(
        f"group {text[:100]!r} is not in the group file of image {image.name}: "
        f"use a number, or one of {_some(image.groups)}"
    )


def _extra_groups(image: Image, name: str | None, gid: int) -> tuple[int, ...]:
    gids = {group.gid for group in image.groups.values() if name is not None and name in group.members}
    return tuple(sorted(gids - {gid}))[:MAX_EXTRA_GROUPS]


def _some(names: dict[str, User] | dict[str, Group]) -> str:
    shown = 12
    listed = ", ".join([*names][:shown]) or "none (the image lists nobody)"
    return listed + (", ..." if len(names) > shown else "")
