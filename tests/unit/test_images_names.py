"""Image references: what is one, and what could climb out of the store if it were."""

import pytest
from rows import each_row
from sandfleet_config.errors import ImageNotFound
from sandfleet_worker.sandbox.image.references import Reference, encode_name, is_name

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "name", "digest"),
    [
        ("python", "python", None),
        ("python:latest", "python", None),
        ("python:3.13-slim", "python:3.13-slim", None),
        ("team/app", "team/app", None),
        ("registry.example:5000/team/app_x:V1", "registry.example:5000/team/app_x:V1", None),
        (DIGEST, None, DIGEST),
        (f"python@{DIGEST}", "python", DIGEST),
    ],
)
def test_references_are_parsed(text: str, name: str | None, digest: str | None) -> None:
    assert Reference.parse(text) == Reference(name=name, digest=digest)


@each_row(
    "text",
    ["", ".", "..", "../x", "/etc", "a//b", "a/../b", "a/", "Python", "a b", "a\n", "a\0b", "a@", f"@{DIGEST}", "a:",
     "a@sha256:12", "sha256:" + "0A" * 32, "x" * 300, "a/" * 100 + "a", "a:../b", "ä"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ImageNotFound, match="not an image reference"):
        Reference.parse(text)


@pytest.mark.parametrize("name", ["a", "team/app", "host.example:5000/a/b:v1"])
def test_a_name_becomes_one_path_component_of_its_own(name: str) -> None:
    encoded = encode_name(name)
    assert "/" not in encoded
    assert not encoded.startswith(".")


def test_different_names_have_different_files() -> None:
    names = ["a/b", "a:b", "a-b", "a_b", "a.b", "a/b:c", "a--b"]
    assert all(is_name(name) for name in names)
    assert len({encode_name(name) for name in names}) == len(names)
