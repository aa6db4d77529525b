"""The users' file and the tokens' file: one line each, read strictly at the start."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NoReturn, TypeAlias

from sandfleet_config.settings import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
TOKEN_BYTES: Final = 24


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
class User:
    """A user of the users' file: the role, and the password's hash."""

    role: Role
    salt: bytes
    key: bytes


def derive(password: str, salt: bytes) -> bytes:
    """Return the key of a password; takes about 50 ms."""
    return hashlib.scrypt(password.encode(), salt=salt, n=COST, r=BLOCK, p=PARALLEL, dklen=32)


def hash_password(password: str) -> str:
    """Return a password's hash with its salt, as a users' file has it."""
    salt = secrets.token_bytes(SALT_BYTES)
    return f"scrypt:{base64.b64encode(salt).decode()}:{base64.b64encode(derive(password, salt)).decode()}"


def refuse(text: str) -> NoReturn:
    """Refuse a faulty line.

    Raises:
        SettingsInvalid: always.
    """
    raise SettingsInvalid(text)


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
    facts = path.stat() if path.exists() else None
    old = path.read_text().splitlines() if facts is not None else []
    lines = [line for line in old if line.split(" ", 1)[0] != name]
    lines.append(f"{name} {role} {hash_password(password)}")
    # Renamed over the old file: a reader sees either.
    new = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write("\n".join(lines) + "\n")
        if facts is not None:  # root adds a user, and who serves the pages reads the file
            os.fchown(descriptor, facts.st_uid, facts.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(facts.st_mode))
    new.replace(path)


def read_users(path: Path, note_fault: Callable[[str], None] = refuse) -> Mapping[str, User]:
    """Read the users' file; a faulty line is told, without its text, and left out.

    Raises:
        SettingsInvalid: it cannot be read.
    """
    found: dict[str, User] = {}
    for number, (name, role, secret) in _read_lines(path, "users_file", note_fault):
        try:
            kind, salt, key = secret.split(":")
            user = User(role, base64.b64decode(salt, validate=True), base64.b64decode(key, validate=True))
        except (ValueError, binascii.Error):
            kind, user = "", None
        if kind == "scrypt" and user is not None:
            found[name] = user
        else:
            text = "the third word is no hash; sandfleet-web new-user writes such lines"
            note_fault(f"users_file {path}, line {number}: {text}")
    return found


def read_tokens(path: Path, note_fault: Callable[[str], None] = refuse) -> Mapping[bytes, Viewer]:
    """Read the tokens' file: the SHA-256 of each token, and whose it is. As `read_users`.

    Raises:
        SettingsInvalid: it cannot be read, or others may read it.
    """
    mode = _stat_mode(path, "token_file")
    if mode & 0o077:
        raise SettingsInvalid(f"token_file {path} must be readable by its owner only: chmod 600 {path}")
    found: dict[bytes, Viewer] = {}
    for number, (name, role, secret) in _read_lines(path, "token_file", note_fault):
        if len(secret) < TOKEN_BYTES:
            note_fault(f"token_file {path}, line {number}: a token has {TOKEN_BYTES} characters or more")
            continue
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


def _read_lines(path: Path, kind: str, note_fault: Callable[[str], None]) -> list[tuple[int, tuple[str, Role, str]]]:
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
            note_fault(f"{kind} {path}, line {number}: must be NAME viewer|operator and one word")
            continue
        found.append((number, (words[0], role, words[2])))
    return found


def read_identity(path: Path) -> tuple[int, ...] | None:
    """Return a value that changes with the file; None if it is not there."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
