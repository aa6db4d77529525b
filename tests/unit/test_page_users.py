"""Who may see the pages and act: hashed passwords, tokens, and files that change meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.settings import SettingsInvalid
from sandfleet_web.pages.user_files import add_user, read_identity
from sandfleet_web.pages.users import POLL_SECONDS, TooManyChecks, Users, parse_basic

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "a-good-secret"
TOKEN = "t" * 32


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def look(self) -> None:
        """Let the next question look at the files."""
        self.now += POLL_SECONDS


def find_role(users: Users, name: str, password: str = PASSWORD) -> str | None:
    viewer = asyncio.run(users.check(name, password))
    return None if viewer is None else viewer.role


def test_a_removed_user_is_out_and_a_new_one_in_without_a_restart(tmp_path: Path) -> None:
    path, clock = tmp_path / "users", Clock()
    for name in ("ann", "bob"):
        add_user(path, name, "operator", PASSWORD)
    users = Users(path, clock=clock)
    assert [find_role(users, name) for name in ("ann", "bob", "cid")] == ["operator", "operator", None]

    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("bob")))
    add_user(path, "bob", "viewer", PASSWORD)
    add_user(path, "cid", "viewer", PASSWORD)
    clock.look()

    assert [find_role(users, name) for name in ("ann", "bob", "cid")] == [None, "viewer", "viewer"]


def test_a_removed_token_and_one_that_others_may_read_are_out(tmp_path: Path) -> None:
    path, clock = tmp_path / "tokens", Clock()
    path.touch(0o600)
    path.write_text(f"prometheus viewer {TOKEN}\ncli operator {'u' * 32}\n")
    users = Users(token_file=path, clock=clock)
    assert users.find_token(TOKEN) is not None

    path.write_text(f"cli operator {'u' * 32}\n")
    clock.look()
    assert (users.find_token(TOKEN), getattr(users.find_token("u" * 32), "name", "")) == (None, "cli")

    path.chmod(0o644)
    clock.look()
    assert users.find_token("u" * 32) is None
    path.chmod(0o600)
    clock.look()
    assert users.find_token("u" * 32) is not None


def test_a_file_that_becomes_faulty_lets_in_those_of_its_good_lines_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "users", Clock()
    for name in ("ann", "bob"):
        add_user(path, name, "operator", PASSWORD)
    users = Users(path, clock=clock)

    path.write_text(path.read_text().replace("ann operator", "ann boss"))
    clock.look()
    with caplog.at_level(logging.ERROR):
        assert [find_role(users, name) for name in ("ann", "bob")] == [None, "operator"]
    assert "line 1" in caplog.text
    assert "scrypt" not in caplog.text

    path.unlink()
    clock.look()
    with caplog.at_level(logging.ERROR):
        assert find_role(users, "bob") is None
    assert "No such file" in caplog.text


def test_a_user_who_is_removed_while_the_password_is_checked_is_out(tmp_path: Path) -> None:
    path, clock = tmp_path / "users", Clock()
    add_user(path, "ann", "operator", PASSWORD)
    users = Users(path, clock=clock)

    async def check() -> object:
        checking = asyncio.create_task(users.check("ann", PASSWORD))
        await asyncio.sleep(0)
        path.write_text("")
        clock.look()
        assert await users.check("ann", PASSWORD) is None
        return await checking

    assert asyncio.run(check()) is None


def test_who_may_read_the_file_stays_when_a_user_is_added(tmp_path: Path) -> None:
    path = tmp_path / "users"
    add_user(path, "ann", "viewer", PASSWORD)
    path.chmod(0o640)
    owner = (1234, 1234) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)

    add_user(path, "bob", "viewer", PASSWORD)

    facts = path.stat()
    assert ((facts.st_uid, facts.st_gid), facts.st_mode & 0o777) == (owner, 0o640)
    assert [file.name for file in tmp_path.iterdir()] == ["users"]


def test_files_are_looked_at_once_a_second_and_not_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "users", Clock()
    looks: list[Path] = []
    add_user(path, "ann", "operator", PASSWORD)
    users = Users(path, clock=clock)

    def look(path: Path) -> tuple[int, ...] | None:
        looks.append(path)
        return read_identity(path)

    monkeypatch.setattr("sandfleet_web.pages.users.read_identity", look)

    for _ in range(50):
        users.find_token(TOKEN)
    clock.look()
    for _ in range(50):
        users.find_token(TOKEN)

    assert looks == [path]


def test_users_are_kept_hashed_and_changed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "users"
    add_user(path, "ann", "viewer", "a-first-secret")
    add_user(path, "bob", "viewer", "another-secret")
    add_user(path, "ann", "operator", "a-second-secret")
    assert "secret" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    users = Users(path)

    async def check() -> list[object]:
        return [
            await users.check("ann", "a-first-secret"),
            getattr(await users.check("ann", "a-second-secret"), "role", None),
            getattr(await users.check("bob", "another-secret"), "role", None),
            await users.check("bob", "another-secret\0"),
        ]

    assert asyncio.run(check()) == [None, "operator", "viewer", None]


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        "ann viewer",
        "ann admin x",
        "ann viewer x",
        "ann viewer scrypt:x:y",
        "a/b viewer scrypt:YQ==:YQ==",
        "ann viewer md5:YQ==:YQ==",
    ],
)
def test_a_faulty_line_is_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    path = tmp_path / "users"
    path.write_text(f"# people\n\n{line}\n")
    with pytest.raises(SettingsInvalid, match="line 3") as raised:
        Users(path)
    assert "YQ==" not in str(raised.value)


def test_a_token_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"prometheus viewer {'t' * 32}\n")
    path.chmod(0o644)
    with pytest.raises(SettingsInvalid, match="chmod 600"):
        Users(token_file=path)
    path.chmod(0o600)
    users = Users(token_file=path)
    assert getattr(users.find_token("t" * 32), "name", None) == "prometheus"
    assert users.find_token("t" * 31) is None


def test_many_guesses_at_once_are_refused() -> None:
    users = Users(extra={"ann": ("viewer", "the-right-one")})

    async def guess() -> int:
        found = await asyncio.gather(*(users.check("ann", f"guess-{n}") for n in range(40)), return_exceptions=True)
        return sum(isinstance(one, TooManyChecks) for one in found)

    assert asyncio.run(guess()) >= 20


@pytest.mark.parametrize("header", ["", "Basic", "Bearer x", "Basic !!!", "Basic Zm9v", "Basic /w=="])
def test_a_header_that_is_no_login_is_none(header: str) -> None:
    assert parse_basic(header) is None
