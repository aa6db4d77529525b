"""Java's keystore of Debian: the times of its certificates are fixed, and nothing else."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import pytest
from sandfleet_worker.sandbox.image.recipe.keystore import fix_keystore

if TYPE_CHECKING:
    from pathlib import Path


def new_keystore(times: list[int], *, tag: int = 2, password: str = "changeit") -> bytes:  # noqa: S107
    body = struct.pack(">III", 0xFEEDFEED, 2, len(times))
    for at, milliseconds in enumerate(times):
        alias, certificate = f"debian:{at}.pem".encode(), bytes([at]) * (100 + at)
        body += struct.pack(">IH", tag, len(alias)) + alias + struct.pack(">Q", milliseconds)
        body += struct.pack(">H", 5) + b"X.509" + struct.pack(">I", len(certificate)) + certificate
    salted = password.encode("utf-16-be") + b"Mighty Aphrodite" + body
    return body + hashlib.sha1(salted, usedforsecurity=False).digest()


def test_two_builds_make_the_same_keystore(tmp_path: Path) -> None:
    path = tmp_path / "cacerts"
    path.write_bytes(new_keystore([1_700_000_000_001, 1_700_000_000_055, 3]))
    fix_keystore(path, 1_600_000_000)
    assert path.read_bytes() == new_keystore([1_600_000_000_000] * 3)


@pytest.mark.parametrize(
    "data", [b"", b"PKCS12", b"x" * 100, new_keystore([1, 2], tag=1), new_keystore([1], password="other")]
)
def test_other_files_stay_as_they_are(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "cacerts"
    path.write_bytes(data)
    fix_keystore(path, 1_600_000_000)
    assert path.read_bytes() == data
    fix_keystore(tmp_path / "missing", 1_600_000_000)
