"""Whom `user` means, and what a hostile passwd can do (nothing)."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rows import each_row
from sandfleet_config.errors import UserInvalid
from sandfleet_worker.sandbox.image.accounts import (
    MAX_ENTRIES,
    is_real_directory,
    parse_group,
    parse_passwd,
    read_inside,
)
from sandfleet_worker.sandbox.image.image import Image
from sandfleet_worker.sandbox.image.users import ResolvedUser, resolve_user

PASSWD = """root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:App:/home/app:/bin/sh
app:x:0:0:a second entry counts for nothing:/:/bin/sh
"""
GROUP = """root:x:0:
app:x:1001:
video:x:44:app,other
audio:x:29:app
staff:x:50:root
"""


def new_image(user: str = "", passwd: str = PASSWD, group: str = GROUP) -> Image:
    return Image(
        name="test",
        digest="sha256:" + "0" * 64,
        erofs_path=Path("/nowhere"),
        size_bytes=1,
        erofs_sha256="",
        created=datetime.now(UTC),
        source="",
        user=user,
        users=parse_passwd(passwd),
        groups=parse_group(group),
    )


@each_row(
    ("user", "expected"),
    [
        ("app", ResolvedUser(1000, 1001, (29, 44), "/home/app", "app")),
        ("1000", ResolvedUser(1000, 1001, (29, 44), "/home/app", "app")),
        ("app:staff", ResolvedUser(1000, 50, (), "/home/app", "app")),
        ("app:7", ResolvedUser(1000, 7, (), "/home/app", "app")),
        ("1234", ResolvedUser(1234, 1234, (), "/", None)),
        ("1234:5", ResolvedUser(1234, 5, (), "/", None)),
        ("nobody:nogroup", ResolvedUser(65534, 65534, (), "/", "nobody")),
        ("root", ResolvedUser(0, 0, (50,), "/root", "root")),
        ("0:0", ResolvedUser(0, 0, (), "/root", "root")),
        ("", ResolvedUser(65534, 65534, (), "/", None)),
    ],
)
def test_users_are_resolved(user: str, expected: ResolvedUser) -> None:
    assert resolve_user(new_image(), user) == expected


@pytest.mark.parametrize(
    ("own", "uid"), [("", 65534), ("root", 65534), ("0", 65534), ("0:50", 65534), ("app", 1000), ("4242", 4242)]
)
def test_unset_means_the_images_own_user_unless_that_is_root(own: str, uid: int) -> None:
    assert resolve_user(new_image(own), "").uid == uid


@each_row(
    "user",
    [
        "ghost",
        "app:ghosts",
        ":",
        "app:",
        ":app",
        "-1",
        "1.5",
        "0x0",
        " app",
        "1000:1:1",
        "99999999999",
        "2147483648",
        "²",
        "a\nb",
    ],
)
def test_an_unknown_user_is_refused_with_the_names_that_there_are(user: str) -> None:
    with pytest.raises(UserInvalid, match=r"user|group"):
        resolve_user(new_image(), user)


def test_an_images_own_user_that_it_does_not_list_is_refused() -> None:
    with pytest.raises(UserInvalid, match="ghost"):
        resolve_user(new_image("ghost"), "")


def test_the_user_nobody_works_without_a_passwd_file() -> None:
    assert resolve_user(new_image(passwd="", group=""), "nobody:nogroup") == ResolvedUser(
        65534, 65534, (), "/", "nobody"
    )


@each_row(
    "line",
    ["", ":::::::", "a", "a:x:1:1", "a:x:-1:1::/:/", "a:x:1:one::/:/", "a:x:٣:1::/:/", "a b:x:1:1::/:/",
     "../a:x:1:1::/:/", "a:x:99999999999:1::/:/", "+::::::", "a:x:1:1::/:/:extra", "\0:x:1:1::/:/"],
)  # fmt: skip
def test_nonsense_in_passwd_is_skipped(line: str) -> None:
    assert parse_passwd(line) == {}


@pytest.mark.parametrize("home", ["", "home", "/a/../../etc", "/a//b", "/a\x07", "/.."])
def test_a_home_that_is_no_plain_path_becomes_the_root(home: str) -> None:
    assert parse_passwd(f"a:x:1:1::{home}:/bin/sh")["a"].home == "/"


def test_a_huge_passwd_is_cut() -> None:
    assert len(parse_passwd("".join(f"u{n}:x:{n}:1::/:/\n" for n in range(MAX_ENTRIES + 5)))) == MAX_ENTRIES


def test_no_link_leads_out_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the host's")
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "passwd").symlink_to(tmp_path / "secret")
    (tree / "link").symlink_to(tmp_path)
    os.mkfifo(tree / "etc" / "group")
    assert read_inside(tree, "etc", "passwd") == ""
    assert read_inside(tree, "link", "secret") == ""
    assert read_inside(tree, "etc", "group") == ""
    assert read_inside(tree, "etc", "nothing") == ""
    assert not is_real_directory(tree, "/link")
    assert is_real_directory(tree, "/etc")
    assert not is_real_directory(tree, "/etc/passwd/x")
