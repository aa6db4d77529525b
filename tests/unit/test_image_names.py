"""Names of images in registries, and the patterns that let hosts pull them."""

from __future__ import annotations

import pytest
from sandfleet_config.image_names import RegistryName, matches_pattern, normalize_image, pin_image
from sandfleet_config.spec import SandboxSpec

DIGEST = f"sha256:{'a' * 64}"
HUB = "docker://docker.io"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("docker://python", f"{HUB}/library/python:latest"),
        ("docker://python:3.13-slim", f"{HUB}/library/python:3.13-slim"),
        ("docker://team/app", f"{HUB}/team/app:latest"),
        ("docker://docker.io/python", f"{HUB}/library/python:latest"),
        ("docker://index.docker.io/team/app:v1", f"{HUB}/team/app:v1"),
        ("docker://Registry.Example/team/app:V1", "docker://registry.example/team/app:V1"),
        ("docker://registry.example:5000/a/b/c", "docker://registry.example:5000/a/b/c:latest"),
        ("docker://localhost/app", "docker://localhost/app:latest"),
        (f"docker://python@{DIGEST}", f"{HUB}/library/python@{DIGEST}"),
        (f"docker://registry.example/app:v1@{DIGEST}", f"docker://registry.example/app:v1@{DIGEST}"),
        ("python:latest", "python"),
        (f"team/app:latest@{DIGEST}", f"team/app@{DIGEST}"),
    ],
)
def test_a_name_is_kept_in_one_form(text: str, whole: str) -> None:
    assert normalize_image(text) == whole
    assert normalize_image(whole) == whole


@pytest.mark.parametrize(
    "text",
    [
        "docker://",
        "docker:///app",
        "docker://UPPER",
        "docker://team/App",
        "docker://app:",
        "docker://app:-tag",
        f"docker://app:{'t' * 129}",
        "docker://app@sha256:abc",
        "docker://app@sha512:" + "a" * 128,
        f"docker://app@{DIGEST}@{DIGEST}",
        "docker://registry.example:99999/app",
        "docker://registry.example:x/app",
        "docker://-registry.example/app",
        "docker://registry..example/app",
        "docker://registry.example/a//b",
        "docker://registry.example/../app",
        "docker://user:password@registry.example/app",
        "docker://registry.example/app?x=1",
        "docker://registry.example/app --flag",
        f"docker://{'a/' * 101}a",
        "docker://docker://app",
        "docker://app\n",
    ],
)
def test_a_malformed_name_is_refused_at_submit(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        RegistryName.parse(text)
    with pytest.raises(ValueError, match=r"image"):
        SandboxSpec(image=text)
    assert normalize_image(text) == text


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*", ["python", "registry.example/team/app"], []),
        (
            "python",
            ["python", "python:3.13", f"python@{DIGEST}", "docker.io/library/python"],
            ["team/python", "pythons"],
        ),
        ("python:3.*", ["python:3.13"], ["python:2", "python", f"python@{DIGEST}"]),
        ("team/*", ["team/app", "team/sub/app:v2"], ["teams/app", "python", "registry.example/team/app"]),
        ("registry.example", ["registry.example/app", "registry.example/a/b:v1"], ["registry.example:5000/app", "app"]),
        ("registry.example/team/*", ["registry.example/team/app"], ["registry.example/other/app"]),
        ("registry.example:5000", ["registry.example:5000/app"], ["registry.example/app"]),
        ("*.example", ["a.example/app", "a.b.example/app"], ["example/app", "a.example.evil.com/app"]),
        ("*.example/team/*", ["a.example/team/app"], ["evil.com/x.example/team/app"]),
        ("*/team/*", ["evil.com/team/app", "team/app"], ["evil.com/x/team/app"]),
        ("docker.io", ["python", "team/app"], ["registry.example/app"]),
        ("Registry.Example/app", ["registry.example/app"], ["registry.example/apps"]),
        ("docker://registry.example/app", ["registry.example/app:v1"], ["app"]),
        (f"app@{DIGEST}", [f"app@{DIGEST}"], ["app", "app:v1"]),
        ("localhost:5000", ["localhost:5000/app"], ["localhost/app"]),
        ("", [], ["python"]),
    ],
)
def test_a_pattern_lets_these_be_pulled_and_no_others(pattern: str, yes: list[str], no: list[str]) -> None:
    found = {name: matches_pattern(RegistryName.parse(f"docker://{name}"), pattern) for name in yes + no}
    assert found == dict.fromkeys(yes, True) | dict.fromkeys(no, False)


def test_a_pin_is_the_digest_and_where_it_is_pulled_from() -> None:
    assert pin_image("python", DIGEST) == DIGEST
    assert pin_image("docker://python:3", DIGEST) == f"{HUB}/library/python:3@{DIGEST}"
