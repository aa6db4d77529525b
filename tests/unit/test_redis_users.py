"""The rules of deploy/redis cover the keys that scripts and programs use, and no more than is named here."""

from __future__ import annotations

import fnmatch
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from sandfleet_config.queues import KEY_PREFIX

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "redis"
MAKE: dict[str, Any] = runpy.run_path(str(FOLDER / "make_users.py"))
NAMES = ("admin", "producer", "worker", "web", "viewer", "replica", "sentinel")
WORKERS_OWN = {
    # In scripts of both sides, behind `owner ~= ''`: a producer ends only what no worker has.
    "claims:",
    "settled:",
}
"""Keys in shared scripts that producers do not touch."""
WORD = re.compile(r"""(?:prefix|ARGV\[1\]) \.\. '([^']+)'""")


def read_users(*queues: str) -> dict[str, list[str]]:
    """Return the words of each user's line."""
    template = (FOLDER / "users.acl.template").read_text()
    text = MAKE["new_users"](template, list(queues or ("sandfleet",)), dict.fromkeys(NAMES, "0" * 64))
    return {line.split()[1]: line.split()[2:] for line in text.splitlines()}


def find_patterns(words: list[str], *, is_write: bool) -> list[str]:
    """Return patterns of keys outside of selectors."""
    before = words[: next((at for at, word in enumerate(words) if word.startswith("(")), len(words))]
    marks = ("~",) if is_write else ("~", "%R~")
    return [word.removeprefix(mark) for word in before for mark in marks if word.startswith(mark)]


def covers(patterns: list[str], literal: str) -> bool:
    """Whether the key that begins with, or is, `literal` is covered."""
    key = f"{KEY_PREFIX}{literal}" + ("x" if literal.endswith((":", "-")) else "")
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def read_literals(folder: str) -> set[str]:
    return {word for file in (ROOT / folder).glob("*.lua") for word in WORD.findall(file.read_text())}


@pytest.mark.parametrize("user", ["producer", "web"])
def test_producers_and_web_have_every_key_of_the_shared_scripts(user: str) -> None:
    reads = find_patterns(read_users()[user], is_write=False)
    literals = read_literals("config/sandfleet_config/lua")
    assert len(literals) > 40
    assert {literal for literal in literals if not covers(reads, literal)} == WORKERS_OWN


def test_web_has_every_key_of_its_scripts() -> None:
    writes = find_patterns(read_users()["web"], is_write=True)
    literals = read_literals("web/sandfleet_web/lua")
    assert literals
    assert {literal for literal in literals if not covers(writes, literal)} == set()


def test_a_worker_has_every_key() -> None:
    assert find_patterns(read_users()["worker"], is_write=True) == ["sandfleet:*"]


def test_nobody_but_workers_and_the_admin_may_write_what_is_a_workers_own() -> None:
    for user in ("producer", "web", "viewer"):
        writes = find_patterns(read_users()[user], is_write=True)
        for literal in ("claims:", "owners", "hosts", "images:", "status:", "running:", "boot:", "keeps:", "live:"):
            assert not covers(writes, literal), (user, literal)


def test_each_queue_gets_its_lists_and_no_other_key() -> None:
    patterns = find_patterns(read_users("sandfleet", "nightly")["producer"], is_write=True)
    assert covers(patterns, "nightly")
    assert covers(patterns, "nightly\x06\x169")
    assert not covers(patterns, "nightly-2")
    assert not covers(find_patterns(read_users()["producer"], is_write=True), "nightly")


def test_the_default_user_is_off() -> None:
    assert read_users()["default"] == ["off"]


def test_passwords_are_kept_and_only_their_owner_may_read_them(tmp_path: Path) -> None:
    first = MAKE["find_password"](tmp_path, "worker")
    assert MAKE["find_password"](tmp_path, "worker") == first
    assert (tmp_path / "worker.password").stat().st_mode & 0o777 == 0o600
    assert len(first) >= 32
