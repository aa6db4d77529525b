"""Who may see the pages and who may act: the users' file and the tokens' file, read again when they change."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from sandfleet_config.settings import SettingsInvalid

from sandfleet_web.pages.user_files import (
    MAX_PASSWORD,
    SALT_BYTES,
    User,
    Viewer,
    derive,
    read_identity,
    read_tokens,
    read_users,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sandfleet_web.pages.user_files import Role

log = logging.getLogger(__name__)

MAX_KEPT: Final = 1000
MAX_CHECKS: Final = 16
"""Passwords that wait for their check; more at once are refused, so that guessing stays slow."""
POLL_SECONDS: Final = 1.0
"""How often the files are looked at: somebody whose line is gone is out so soon."""
_K = TypeVar("_K")
_V = TypeVar("_V")


class TooManyChecks(Exception):
    """More passwords are to be checked than one thread can: try again in a moment."""


class Users:
    """The users and tokens of the settings, and those of one run that needs a password made anew.

    `extra` are users by name whose passwords are known: (role, password). A file that cannot be read
    any more lets nobody in, and a line that cannot be read not its user: the log says why.
    """

    def __init__(
        self,
        users_file: Path | None = None,
        token_file: Path | None = None,
        extra: Mapping[str, tuple[Role, str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the files.

        Raises:
            SettingsInvalid: one of them cannot be read, or has a faulty line.
        """
        self._users_file, self._token_file, self._clock = users_file, token_file, clock
        self._extra: dict[str, User] = {}
        for name, (role, password) in (extra or {}).items():
            salt = secrets.token_bytes(SALT_BYTES)
            self._extra[name] = User(role, salt, derive(password, salt))
        self._identity = self._read_identity()
        self._looked_at = clock()
        self._users = self._extra | (dict(read_users(users_file)) if users_file is not None else {})
        self._tokens = dict(read_tokens(token_file)) if token_file is not None else {}
        # One thread: somebody who guesses takes no other work's threads.
        self._pool = ThreadPoolExecutor(1, "passwords")
        self._pending: dict[bytes, asyncio.Future[bytes]] = {}
        self._secret = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, Viewer] = OrderedDict()

    def find_token(self, token: str) -> Viewer | None:
        """Return whose token it is."""
        self._read_changes()
        digest = hashlib.sha256(token.encode()).digest()
        return next((whose for known, whose in self._tokens.items() if hmac.compare_digest(known, digest)), None)

    async def check(self, name: str, password: str) -> Viewer | None:
        """Return the user if the password is right; a right one is not derived again.

        Raises:
            TooManyChecks: others are being checked.
        """
        self._read_changes()
        user = self._users.get(name)
        # HMAC, and so scrypt, pads a short key with zeros: with a NUL behind it, it would be the same.
        if user is None or len(password) > MAX_PASSWORD or "\0" in password:
            return None
        seen = hmac.new(self._secret, f"{name}\0{password}".encode(), "sha256").digest()
        if (known := self._right.get(seen)) is not None:
            return known
        if not hmac.compare_digest(await self._derive_once(seen, password, user.salt), user.key):
            return None
        if self._users.get(name) != user:  # the file has changed meanwhile
            return None
        viewer = Viewer(name, user.role)
        self._right[seen] = viewer
        if len(self._right) > MAX_KEPT:
            self._right.popitem(last=False)
        return viewer

    async def _derive_once(self, seen: bytes, password: str, salt: bytes) -> bytes:
        """Derive the key of a password in the thread; requests with the same password share it."""
        pending = self._pending.get(seen)
        if pending is None:
            if len(self._pending) >= MAX_CHECKS:
                raise TooManyChecks
            pending = asyncio.get_running_loop().run_in_executor(self._pool, derive, password, salt)
            self._pending[seen] = pending
            pending.add_done_callback(lambda _: self._pending.pop(seen))
        return await asyncio.shield(pending)

    async def find(self, authorization: str) -> Viewer | None:
        """Return who sent a header ``Authorization: Basic``; None for anything else."""
        given = parse_basic(authorization)
        return None if given is None else await self.check(*given)

    def _read_changes(self) -> None:
        """Read the files again if they have changed."""
        now = self._clock()
        if now - self._looked_at < POLL_SECONDS:
            return
        self._looked_at = now
        identity = self._read_identity()
        if identity == self._identity:
            return
        self._identity = identity
        users, tokens = self._users_file, self._token_file
        self._users = self._extra | (_read_or_none(read_users, users) if users is not None else {})
        self._tokens = _read_or_none(read_tokens, tokens) if tokens is not None else {}
        self._right.clear()
        log.info("%d users and %d tokens: their files have changed", len(self._users), len(self._tokens))

    def _read_identity(self) -> list[tuple[int, ...] | None]:
        return [read_identity(path) for path in (self._users_file, self._token_file) if path is not None]


def _read_or_none(read: Callable[[Path, Callable[[str], None]], Mapping[_K, _V]], path: Path) -> dict[_K, _V]:
    """Read a file that has changed; of one that cannot be read, nobody is known any more."""
    try:
        return dict(read(path, _tell_fault))
    except SettingsInvalid as error:
        log.error("%s: no user of that file can log in", error, extra={"action": "users_unreadable"})  # noqa: TRY400
        return {}


def _tell_fault(text: str) -> None:
    log.error("%s: the line is left out", text, extra={"action": "users_unreadable"})


def parse_basic(authorization: str) -> tuple[str, str] | None:
    """Return name and password of a header; None if it is no such header."""
    kind, _, text = authorization.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except (ValueError, binascii.Error):
        return None
    return (name, password) if colon else None
