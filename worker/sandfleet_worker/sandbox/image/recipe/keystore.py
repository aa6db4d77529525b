"""Java's keystore of Debian's certificates: each holds the time at which it was added.

The format is JKS, as in OpenJDK's sun.security.provider.JavaKeyStore: big-endian magic, version and
number of entries; per certificate a tag, an alias, milliseconds since 1970, a type and its bytes;
then SHA-1 over the password, a fixed text, and all of that.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC, _VERSION, _CERTIFICATE = 0xFEEDFEED, 2, 2
_HEAD = struct.Struct(">III")
_DIGEST_BYTES = 20
# The password that Debian's package sets; JDKs have the same one by default.
_SALT = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"


def fix_keystore(path: Path, seconds: int) -> None:
    """Set the time of each certificate to `seconds` since 1970.

    A file of another format, with another password, or with private keys stays as it is.
    """
    if path.is_symlink() or not path.is_file():
        return
    data = bytearray(path.read_bytes())
    body = memoryview(data)[:-_DIGEST_BYTES]
    if len(data) < _HEAD.size + _DIGEST_BYTES or _digest(body) != data[-_DIGEST_BYTES:]:
        return
    magic, version, count = _HEAD.unpack_from(body)
    if (magic, version) != (_MAGIC, _VERSION):
        return
    at = _HEAD.size
    for _ in range(count):
        tag, alias_bytes = struct.unpack_from(">IH", body, at)
        if tag != _CERTIFICATE:
            return
        at += 6 + alias_bytes
        struct.pack_into(">Q", body, at, seconds * 1000)
        (type_bytes,) = struct.unpack_from(">H", body, at + 8)
        (certificate_bytes,) = struct.unpack_from(">I", body, at + 10 + type_bytes)
        at += 14 + type_bytes + certificate_bytes
    data[-_DIGEST_BYTES:] = _digest(body)
    body.release()
    path.write_bytes(data)


def _digest(body: memoryview) -> bytes:
    digest = hashlib.sha1(_SALT, usedforsecurity=False)
    digest.update(body)
    return digest.digest()
