"""Check the SHA-256 of what is uploaded and downloaded, while it passes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sandfleet_config.store.protocol import CHUNK_BYTES, ObjectDamaged, ObjectMissing, check_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def check_bytes(sha256: str, data: bytes) -> None:
    """Return if `data` has that SHA-256.

    Raises:
        ObjectDamaged: it has not.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        msg = f"not uploaded: the bytes given are not those of object {sha256}"
        raise ObjectDamaged(msg, sha256)


def read_checked_file(
    sha256: str, file: BinaryIO, size: int, check: Callable[[], None] | None = None
) -> Iterator[bytes]:
    """Yield an open file of `size` bytes in chunks.

    The last chunk comes only if the whole file has that SHA-256. So an uploader that stops at an
    error never completes a wrong object. `check` is called before each chunk; what it raises ends
    the upload.

    Raises:
        ObjectDamaged: the file has another SHA-256 or another size by now.
    """
    digest, left = hashlib.sha256(), size
    while True:
        if check is not None:
            check()
        chunk = file.read(CHUNK_BYTES)
        digest.update(chunk)
        left -= len(chunk)
        if left <= 0 or not chunk:
            if left or file.read(1) or digest.hexdigest() != sha256:
                msg = f"not uploaded: {file.name} is not object {sha256}, or was changed during the upload"
                raise ObjectDamaged(msg, sha256)
            if chunk:
                yield chunk
            return
        yield chunk


def read_checked(sha256: str, chunks: Iterable[bytes], store_name: str) -> Iterator[bytes]:
    """Yield `chunks` in pieces of at most `CHUNK_BYTES`, then check them.

    Raises:
        ObjectDamaged: they have another SHA-256.
    """
    digest = hashlib.sha256()
    for chunk in chunks:
        view = memoryview(chunk)
        for at in range(0, len(view), CHUNK_BYTES):
            piece = bytes(view[at : at + CHUNK_BYTES])
            digest.update(piece)
            yield piece
    if digest.hexdigest() != sha256:
        raise new_damaged(sha256, store_name)


def fetch_checked(read: Callable[[str], Iterable[bytes]], sha256: str, path: Path) -> None:
    """Write what `read` yields to a temporary file beside `path`, then rename it.

    Without fsync: it is for caches, whose readers check the file or can fetch it again.
    """
    check_sha256(sha256)
    descriptor, name = tempfile.mkstemp(prefix=".fetch-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in read(sha256):
                file.write(chunk)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_missing(sha256: str, store_name: str) -> ObjectMissing:
    """Return the error of an object that the store does not have."""
    return ObjectMissing(f"{store_name} has no object {sha256}: it was never uploaded, or has expired", [sha256])


def new_damaged(sha256: str, store_name: str) -> ObjectDamaged:
    """Return the error of a stored object whose bytes are not those of its name."""
    msg = f"object {sha256} in {store_name} was altered: delete it there, and upload it again"
    return ObjectDamaged(msg, sha256)


def new_wrong_size(sha256: str, store_name: str, found: int, wanted: int) -> ObjectDamaged:
    """Return the error of an upload whose name is taken by an object of another size."""
    msg = (
        f"not uploaded: object {sha256} in {store_name} has {found} bytes instead of {wanted}:"
        " it was altered; delete it there, and upload it again"
    )
    return ObjectDamaged(msg, sha256)
