"""Failures of skopeo and manifests of registries, each with its meaning, by table."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources, ImageInvalid, ImageNotFound
from sandfleet_config.image_names import RegistryName
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.sandbox.image.cache import ImageCache
from sandfleet_worker.sandbox.image.oci import find_architecture
from sandfleet_worker.sandbox.image.registry.failures import read_failure
from sandfleet_worker.sandbox.image.registry.manifest import Manifest
from sandfleet_worker.sandbox.image.registry.puller import Puller
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.image.tools import Limits, StagingFolder, ToolEnd

NAME = RegistryName.parse("docker://registry.example/team/app:v1")
DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("said", "code", "is_passing"),
    [
        (
            "reading manifest v1 in registry.example/team/app: manifest unknown: manifest unknown",
            "IMAGE_NOT_FOUND",
            False,
        ),
        ("reading manifest v1 in docker.io/library/x: errors: name unknown: repository", "IMAGE_NOT_FOUND", False),
        (
            "reading manifest v1 in registry.example/team/app: unauthorized: authentication required",
            "IMAGE_UNAVAILABLE",
            False,
        ),
        ("errors: denied: requested access to the resource is denied", "IMAGE_UNAVAILABLE", False),
        ("reading manifest v1: toomanyrequests: You have reached your pull rate limit", "IMAGE_UNAVAILABLE", True),
        ("received unexpected HTTP status: 429 Too Many Requests", "IMAGE_UNAVAILABLE", True),
        ("received unexpected HTTP status: 503 Service Unavailable", "IMAGE_UNAVAILABLE", True),
        ("dial tcp 127.0.0.1:1: connect: connection refused", "IMAGE_UNAVAILABLE", True),
        ("dial tcp: lookup registry.example: no such host", "IMAGE_UNAVAILABLE", True),
        ("x509: certificate signed by unknown authority", "IMAGE_UNAVAILABLE", False),
        ("unexpected EOF", "IMAGE_UNAVAILABLE", True),
        ('no image found in manifest list for architecture amd64, variant \\"\\", OS linux', "IMAGE_INVALID", False),
        ("exceeded maximum allowed size of 4194304 bytes", "IMAGE_INVALID", False),
        ("Digest did not match, expected sha256:1, got sha256:2", "IMAGE_INVALID", False),
        ("Digest did not match, expected sha256:d538d199ead3c3ea77429551, got sha256:2", "IMAGE_INVALID", False),
        ("", "IMAGE_UNAVAILABLE", True),
    ],
)
def test_a_failure_of_skopeo_gets_its_code(said: str, code: str, is_passing: bool) -> None:  # noqa: FBT001
    line = f'time="2026-11-28T15:55:56Z" level=fatal msg="Error parsing image name \\"docker://x\\": {said}"\n'
    failure = read_failure(line, NAME)
    assert (failure.error.code, failure.is_passing) == (ErrorCode(code), is_passing)
    assert "registry.example" in failure.error.message


def test_a_hostile_message_is_short_and_printable() -> None:
    message = read_failure("\x1b[31m\n\u202e" + "x" * 100_000, NAME).error.message
    assert len(message) < 1000
    assert message.isprintable()


def test_a_signed_address_is_not_told() -> None:
    line = 'msg="Get \\"https://bucket.example/blob?X-Amz-Signature=planted&x=1\\": EOF"'
    message = read_failure(line, NAME).error.message
    assert "planted" not in message
    assert "https://bucket.example/blob?..." in message


def manifest(**fields: Any) -> Manifest:
    return Manifest.parse(json.dumps({"schemaVersion": 2, "config": {}, "layers": []} | fields).encode())


def test_the_digest_is_that_of_the_bytes_that_came() -> None:
    raw = b' {"schemaVersion": 2,   "layers": []}\n'
    assert Manifest.parse(raw).digest == f"sha256:{hashlib.sha256(raw).hexdigest()}"


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"[]", b"3", b'{"schemaVersion": 1}', b"[" * 100_000], ids=lambda raw: repr(raw[:20])
)
def test_what_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(ImageInvalid):
        Manifest.parse(raw)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"layers": [{"size": 1 << 40}]}, "more than 32 MiB"),
        ({"layers": [{"size": -1}]}, "a layer has no size"),
        ({"layers": [{}]}, "a layer has no size"),
        ({"layers": [{"size": 1}] * 501}, "501 layers"),
        ({"layers": "many"}, "lists no layers"),
        ({"layers": [3]}, "not a JSON object"),
        ({"manifests": []}, "no platform at all"),
        ({"manifests": [{"platform": {"os": "linux", "architecture": "riscv64"}}]}, "the image is for linux/riscv64"),
        ({"manifests": [{"platform": {"os": "windows", "architecture": "amd64"}}]}, "windows/amd64"),
        ({"manifests": [{}] * 1001}, "lists 1001 images"),
    ],
)
def test_what_cannot_run_here_is_refused_before_it_is_fetched(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ImageInvalid, match=why):
        manifest(**fields).check(Limits(max_bytes=32 << 20))


def test_an_index_that_has_this_platform_is_taken() -> None:
    platform = {"os": "linux", "architecture": find_architecture()}
    manifest(manifests=[{"platform": {"os": "unknown", "architecture": "unknown"}}, {"platform": platform}]).check(
        Limits()
    )
    manifest(manifests=[{"digest": DIGEST}]).check(Limits())


@pytest.mark.parametrize("sizes", [[3, 4], [64 << 20]], ids=["fits", "too large"])
def test_room_is_made_for_the_layers_of_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    layers = json.dumps({"schemaVersion": 2, "config": {}, "layers": [{"size": size} for size in sizes]}).encode()
    own = f"sha256:{hashlib.sha256(layers).hexdigest()}"
    platforms = [("linux", "riscv64", DIGEST), ("linux", find_architecture(), own)]
    entries = [{"platform": {"os": os, "architecture": arch}, "digest": digest} for os, arch, digest in platforms]
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    asked: list[str] = []
    room: list[int] = []

    def inspect(name: RegistryName, *_: object) -> ToolEnd:
        asked.append(name.digest)
        return ToolEnd(0, layers if name.digest == own else index, "")

    settings = ImagesSettings(root=tmp_path)
    store = ImageStore(tmp_path)
    cache = ImageCache(store, settings)
    puller = Puller(store, cache, settings, Limits(max_bytes=32 << 20))
    monkeypatch.setattr(puller._reader._skopeo, "inspect", inspect)
    monkeypatch.setattr(puller._reader._skopeo, "copy", lambda *_: (ToolEnd(1, b"", "manifest unknown"), ""))
    monkeypatch.setattr(cache, "free_space", lambda _, size: room.append(size))
    with pytest.raises(ImageNotFound if sum(sizes) < 32 << 20 else ImageInvalid):
        puller.pull(NAME, lambda: None)
    assert asked == ["", own]
    assert room == ([7] if sum(sizes) < 32 << 20 else [])


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (ToolEnd(-9, b"", ""), HostResources),
        (ToolEnd(1, b"", "write /x: no space left on device"), HostResources),
        (ToolEnd(1, b"", "layer is broken"), ImageInvalid),
    ],
)
def test_trouble_of_the_host_is_not_the_images(tmp_path: Path, end: ToolEnd, error: type[Exception]) -> None:
    with pytest.raises(error):
        StagingFolder(tmp_path, -1, Limits()).check_end("umoci", end)


@pytest.mark.parametrize("pattern", ["https://registry.example/team", "docker://", "a b"])
def test_a_pattern_that_can_match_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="must be patterns such as"):
        ImagesSettings(pull_from=(pattern,))
