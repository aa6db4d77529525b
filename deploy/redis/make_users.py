#!/usr/bin/env python3
"""Make users.acl, and a password for each user, out of users.acl.template.

    python3 make_users.py --queue nightly /etc/redis/sandfleet

The folder gets ``users.acl`` (with hashes only, for Redis's setting ``aclfile``) and one file
``USER.password`` for each user, which only its owner may read. A password that is there is kept, so
the same call with another list of queues changes only the rights. It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
from pathlib import Path

TEMPLATE = Path(__file__).with_name("users.acl.template")
DEFAULT_QUEUE = "sandfleet"
QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PASSWORD_BYTES = 24


def read_lines(text: str) -> list[str]:
    """Return the lines of a template without comments, each with those that go on with it."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(" ") and line.strip():
            lines[-1] += f" {line.strip()}"
        elif line.strip() and not line.startswith("#"):
            lines.append(line)
    return lines


def new_users(template: str, queues: list[str], hashes: dict[str, str]) -> str:
    """Return users.acl; `hashes` has the SHA-256 of each user's password."""
    # kombu's lists of the other priorities: the name, two control characters, the step.
    words = {"queues": " ".join(f"~sandfleet:{name} ~sandfleet:{name}??[369]" for name in queues)}
    users: list[str] = []
    for line in read_lines(template):
        filled = re.sub(r"\{(\w+)\}", lambda found: words[found[1]], line)
        if filled.startswith("let "):
            name, _, value = filled.removeprefix("let ").partition(" = ")
            words[name] = value
        else:
            users.append(re.sub(r"%(\w+)%", lambda found: f"#{hashes[found[1]]}", filled))
    return "".join(f"{user}\n" for user in users)


def find_password(folder: Path, user: str) -> str:
    """Return the password of `user`: the one in its file, else a new one."""
    file = folder / f"{user}.password"
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_urlsafe(PASSWORD_BYTES) + "\n")
    return file.read_text().strip()


def main() -> None:
    """Read the command line, and write the files."""
    parser = argparse.ArgumentParser(description="Make users.acl and passwords for sandfleet's Redis.")
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--queue", action="append", default=[], help="another queue that producers use")
    options = parser.parse_args()
    queues = list(dict.fromkeys([DEFAULT_QUEUE, *options.queue]))
    if wrong := [name for name in queues if not QUEUE_NAME.fullmatch(name)]:
        parser.error(f"no queue can have the name {wrong[0]!r}")
    options.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    template = TEMPLATE.read_text()
    names = re.findall(r"%(\w+)%", template.split("\nuser ", 1)[1])
    hashes = {name: hashlib.sha256(find_password(options.folder, name).encode()).hexdigest() for name in names}
    new_file = options.folder / "users.acl.new"
    new_file.write_text(new_users(template, queues, hashes))
    new_file.replace(options.folder / "users.acl")


if __name__ == "__main__":
    main()
