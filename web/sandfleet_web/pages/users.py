"""Who may see the pages and who may act: the users' file and the tokens' file."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from sandfleet_config.settings import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Role: TypeAlias = Literal["viewer", "operator"]
ROLES: Final[tuple[Role, ...]] = ("viewer", "operator")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
MAX_LINES: Final = 1000
MAX_FILE_BYTES: Final = 1 << 20
COST, BLOCK, PARALLEL = 1 << 14, 8, 1
"""scrypt with 16 MiB: about 50 ms a password."""
SALT_BYTES: Final = 16
LEAST_PASSWORD: Final = 8
MAX_PASSWORD: Final = 1024
MAX_KEPT: Final = 1000
MAX_CHECKS: Final = 16
"""Passwords that wait for their check; more at once are refused, so that guessing stays slow."""
TOKEN_BYTES: Final = 24


class TooManyChecks(Exception):
    """More passwords are to be checked than one thread can: try again in a moment."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Somebody whose password or token was right."""

    name: str
    role: Role

    @property
    def may_act(self) -> bool:
        """Whether this person may change the fleet."""
        return self.role == "operator"


@dataclass(frozen=True, slots=True)
class _User:
    role: Role
    salt: bytes
    key: bytes


def hash_password(password: str) -> str:
    """Return a password's hash with its salt, as a users' file has it."""
    salt = secrets.token_bytes(SALT_BYTES)
    return f"scrypt:{base64.b64encode(salt).decode()}:{base64.b64encode(_derive(password, salt)).decode()}"


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=COST, r=BLOCK, p=PARALLEL, dklen=32)


def add_user(path: Path, name: str, role: Role, password: str) -> None:
    """Add a line to the users' file, or change the line of that name.

    Raises:
        ValueError: the name or the password cannot be used.
        OSError: the file cannot be written.
    """
    if not NAME.match(name):
        raise ValueError("a user's name is 1 to 64 of A-Z a-z 0-9 . _ @ - and starts with a letter or a digit")
    if not LEAST_PASSWORD <= len(password) <= MAX_PASSWORD or "\0" in password:
        raise ValueError(f"a password has {LEAST_PASSWORD} to {MAX_PASSWORD} characters")
    old = path.read_text().splitlines() if path.exists() else []
    lines = [line for line in old if line.split(" ", 1)[0] != name]
    lines.append(f"{name} {role} {hash_password(password)}")
    # Renamed over the old file: a reader sees either.
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write("\n".join(lines) + "\n")
    new.replace(path)


def read_users(path: Path) -> Mapping[str, _User]:
    """Read the users' file.

    Raises:
        SettingsInvalid: it cannot be read, or a line is faulty; no line is repeated.
    """
    found: dict[str, _User] = {}
    for number, (name, role, secret) in _read_lines(path, "users_file"):
        try:
            kind, salt, key = secret.split(":")
            user = _User(role, base64.b64decode(salt, validate=True), base64.b64decode(key, validate=True))
        except (ValueError, binascii.Error):
            kind, user = "", None
        if kind != "scrypt" or user is None:
            raise SettingsInvalid(
                f"users_file {path}, line {number}: the third word is no hash; sandfleet-web new-user writes such lines"
            )
        found[name] = user
    return found


def read_tokens(path: Path) -> Mapping[bytes, Viewer]:
    """Read the tokens' file: the SHA-256 of each token, and whose it is.

    Raises:
        SettingsInvalid: it cannot be read, others may read it, or a line is faulty.
    """
    mode = _stat_mode(path, "token_file")
    if mode & 0o077:
        raise SettingsInvalid(f"token_file {path} must be readable by its owner only: chmod 600 {path}")
    found: dict[bytes, Viewer] = {}
    for number, (name, role, secret) in _read_lines(path, "token_file"):
        if len(secret) < TOKEN_BYTES:
            raise SettingsInvalid(f"token_file {path}, line {number}: a token has {TOKEN_BYTES} characters or more")
        found[hashlib.sha256(secret.encode()).digest()] = Viewer(name, role)
    return found


def _stat_mode(path: Path, kind: str) -> int:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SettingsInvalid(f"{kind} {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise SettingsInvalid(f"{kind} {path} is no file")
    return mode


def _read_lines(path: Path, kind: str) -> list[tuple[int, tuple[str, Role, str]]]:
    """Return the numbered lines of three words; empty lines and ``#`` lines are left out."""
    _stat_mode(path, kind)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{kind} {path} cannot be read: {error}") from None
    lines = text.splitlines()
    if len(lines) > MAX_LINES or len(text) > MAX_FILE_BYTES:
        raise SettingsInvalid(f"{kind} {path} has more than {MAX_LINES} lines")
    found: list[tuple[int, tuple[str, Role, str]]] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        role: Role | None = next((one for one in ROLES if len(words) == 3 and words[1] == one), None)  # noqa: PLR2004
        if role is None or not NAME.match(words[0]):
            raise SettingsInvalid(f"{kind} {path}, line {number}: must be NAME viewer|operator and one word")
        found.append((number, (words[0], role, words[2])))
    return found


class Users:
    """The users and tokens of the settings, and those of one run that needs a password made anew.

    `extra` are users by name whose passwords are known: (role, password).
    """

    def __init__(
        self,
        users_file: Path | None = None,
        token_file: Path | None = None,
        extra: Mapping[str, tuple[Role, str]] | None = None,
    ) -> None:
        self._users = dict(read_users(users_file)) if users_file is not None else {}
        self._tokens = dict(read_tokens(token_file)) if token_file is not None else {}
        for name, (role, password) in (extra or {}).items():
            salt = secrets.token_bytes(SALT_BYTES)
            self._users[name] = _User(role, salt, _derive(password, salt))
        # One thread: somebody who guesses takes no other work's threads.
        self._pool = ThreadPoolExecutor(1, "passwords")
        self._pending: dict[bytes, asyncio.Future[bytes]] = {}
        self._secret = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, Viewer] = OrderedDict()

    def find_token(self, token: str) -> Viewer | None:
        """Return whose token it is."""
        digest = hashlib.sha256(token.encode()).digest()
        return next((whose for known, whose in self._tokens.items() if hmac.compare_digest(known, digest)), None)

    async def check(self, name: str, password: str) -> Viewer | None:
        """Return the user if the password is right; a right one is not derived again.

        Raises:
            TooManyChecks: others are being checked.
        """
        user = self._users.get(name)
        # HMAC, and so scrypt, pads a short key with zeros: with a NUL behind it, it would be the same.
        if user is None or len(password) > MAX_PASSWORD or "\0" in password:
            return None
        seen = hmac.new(self._secret, f"{name}\0{password}".encode(), "sha256").digest()
        if (known := self._right.get(seen)) is not None:
            return known
        if not hmac.compare_digest(await self._derive_once(seen, password, user.salt), user.key):
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
            pending = asyncio.get_running_loop().run_in_executor(self._pool, _derive, password, salt)
            self._pending[seen] = pending
            pending.add_done_callback(lambda _: self._pending.pop(seen))
        return await asyncio.shield(pending)

    async def find(self, authorization: str) -> Viewer | None:
        """Return who sent a header ``Authorization: Basic``; None for anything else."""
        given = parse_basic(authorization)
        return None if given is None else await self.check(*given)


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
