"""Facts of a shared image, their digest, and the patterns that let a host take it."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rows import each_row
from sandfleet_config.errors import ImageInvalid
from sandfleet_config.image_names import matches_shared
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.sandbox.image.accounts import Group, User
from sandfleet_worker.sandbox.image.image import Image
from sandfleet_worker.sandbox.image.shared_facts import SharedFacts, digest_of, parse_facts

DIGEST = f"sha256:{'a' * 64}"


def new_image(**fields: Any) -> Image:
    given: dict[str, Any] = {
        "name": "team/app",
        "digest": DIGEST,
        "erofs_path": Path("/images/image.erofs"),
        "size_bytes": 4096,
        "erofs_sha256": "b" * 64,
        "created": datetime.now(UTC),
        "source": "oci:layout",
        "env": ("A=1",),
        "cmd": ("run", "it"),
        "working_dir": "/srv",
        "user": "app",
        "users": {"app": User(uid=1000, gid=1000, home="/home/app")},
        "groups": {"app": Group(gid=1000, members=("app",)), "none": Group(gid=7)},
        "directories": frozenset({"/dev", "/work", "/home/app"}),
    }
    return Image(**(given | fields))


def test_facts_survive_the_store_and_say_nothing_of_the_host() -> None:
    image = new_image()
    data = SharedFacts.of(image).encode()
    taken = parse_facts(data, "app").to_image(digest_of(data), "shared:app", image.erofs_path)
    kept = {"digest", "name", "source", "created"}
    assert taken.model_dump(exclude=kept) == image.model_dump(exclude=kept)
    same = new_image(name="other", digest=f"sha256:{'c' * 64}", created=datetime(2026, 1, 1, tzinfo=UTC), source="x")
    assert SharedFacts.of(same).encode() == data
    for fields in ({"erofs_sha256": "c" * 64}, {"env": ("A=2",)}, {"size_bytes": 1}):
        assert digest_of(SharedFacts.of(new_image(**fields)).encode()) != digest_of(data)


@each_row(
    "fields",
    [
        {"format": 2},
        {"format": True},
        {"machine": "vax"},
        {"erofs_sha256": "../" + "b" * 61},
        {"erofs_sha256": "b" * 64 + "\n"},
        {"size_bytes": -1},
        {"size_bytes": "4096"},
        {"env": ["NO_VALUE"]},
        {"env": ["A=\0"]},
        {"env": ["A=1"] * 5000},
        {"cmd": "sh"},
        {"working_dir": "/\0"},
        {"users": {"app": {"uid": -1, "gid": 0, "home": "/"}}},
        {"users": {"app": {"uid": 2**31, "gid": 0, "home": "/"}}},
        {"users": {"app": {"uid": 0, "gid": 0, "home": "/../etc"}}},
        {"users": {"a:x:0:0::/:\nroot": {"uid": 0, "gid": 0, "home": "/"}}},
        {"groups": {"a b": {"gid": 0, "members": []}}},
        {"groups": {"app": {"gid": 0, "members": ["a,b"]}}},
        {"directories": ["/usr"]},
        {"directories": ["/home/other"]},
        {"privileged": True},
    ],
)
def test_facts_that_no_image_has_are_refused(fields: dict[str, Any]) -> None:
    raw = json.loads(SharedFacts.of(new_image()).encode()) | fields
    with pytest.raises(ImageInvalid, match="shared image app is not used"):
        parse_facts(json.dumps(raw).encode(), "app")


@each_row("data", [b"", b"[]", b"null", b"\xff\xfe", b"{", b"[" * 100_000, b'{"format": 1}'])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(ImageInvalid, match="shared image app is not used"):
        parse_facts(data, "app")


def test_an_image_for_another_machine_is_named() -> None:
    raw = json.loads(SharedFacts.of(new_image()).encode()) | {"machine": "riscv64"}
    with pytest.raises(ImageInvalid, match=f"it is for 'riscv64', this host is {platform.machine()}$"):
        parse_facts(json.dumps(raw).encode(), "app")


@each_row(
    ("pattern", "name", "is_taken"),
    [
        ("*", "team/app:v1", True),
        ("team/*", "team/app:v1", True),
        ("team/*", "teams/app", False),
        ("app", "app", True),
        ("app:latest", "app", True),
        ("app", "app:v1", False),
        ("app", "my/app", False),
        (f"app@{DIGEST}", "app", True),
        (f"*@{DIGEST}", "other", True),
        (f"app@sha256:{'b' * 64}", "app", False),
        (f"other@{DIGEST}", "app", False),
    ],
)
def test_a_host_takes_what_it_lists(pattern: str, name: str, *, is_taken: bool) -> None:
    assert ImagesSettings(shared=(pattern,)).shared == (pattern,)
    assert matches_shared(name, DIGEST, pattern) is is_taken


@each_row("pattern", ["docker://python", "app@", "app@sha256:12", f"app@{DIGEST.upper()}", f"@{DIGEST}", "a b"])
def test_a_pattern_that_can_name_no_shared_image_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="must be patterns such as"):
        ImagesSettings(shared=(pattern,))
    assert ImagesSettings().shared == ()
