"""Staging folders, in which an image is made before one rename publishes it as a whole.

A staging folder is locked (flock on the folder itself) for as long as its maker, or a tool that it
started, lives. The kernel drops the lock when they die, however they die. So a folder whose lock is
free is a leftover, and the next add removes it.
"""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandfleet_config.errors import HostResources, ImageUnavailable

from sandfleet_worker.sandbox.image.kind import Kind
from sandfleet_worker.sandbox.start_hooks import StartHooks

LOCK_POLL_SECONDS = 0.05
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[tuple[Path, int]]:
    """Yield an empty locked folder and the lock's descriptor, which its tools must inherit."""
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix="add-", dir=parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        # A sweep between the two lines above may hold the lock, or have removed the folder.
        if _lock_now(lock) and folder.exists():
            break
        os.close(lock)
    try:
        yield folder, lock
    finally:
        remove_tree(folder)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the folders that killed adds and interrupted removals have left."""
    for folder in parent.glob("*-*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _lock_now(lock):
                remove_tree(folder)
        finally:
            os.close(lock)


def _lock_now(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_shared(descriptor: int, kind: Kind, hooks: StartHooks, check: Callable[[], None]) -> None:
    """Lock the file of an image or a dataset for reading.

    While a removal holds it, tell `hooks` and call `check`, which may raise.
    """
    if _lock_now(descriptor, fcntl.LOCK_SH):
        return
    with hooks.waiting(f"its {kind}, which somebody is about to remove"):
        while not _lock_now(descriptor, fcntl.LOCK_SH):
            check()
            time.sleep(LOCK_POLL_SECONDS)


@contextlib.contextmanager
def locked(path: Path, waiting: str = "", on_progress: Any = None) -> Iterator[None]:
    """Hold the lock file at `path`; pass `waiting` to `on_progress` if it is held already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock_now(descriptor):
            if waiting and on_progress is not None:
                on_progress(waiting)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_when_free(path: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file at `path`; call `check`, which may raise, while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _lock_now(descriptor):
            check()
            time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a folder with hostile contents, never across a mount.

    A half-made root may have the host's /dev in it.
    """
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(folder)], check=False, capture_output=True)


def write_json(path: Path, value: Any, temporary: Path) -> None:
    """Write a file as a whole or not at all; `temporary` is a path on the same file system."""
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the entries of `folder` to disk (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def host_faults(root: Path) -> Iterator[None]:
    """Turn a full disk into `HostResources`, a lack of write access into `ImageUnavailable`."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise disk_full(root) from error
        if error.errno == errno.EROFS:
            raise ImageUnavailable.of(
                f"{error.filename or root}: this worker has the image store read-only: add or pull the image where it is writable"
            ) from error
        if isinstance(error, PermissionError):
            raise ImageUnavailable.of(
                f"{error.filename or root}: permission denied; the image store is root's: run as root, "
                "or set SANDFLEET_IMAGES__ROOT to a folder of your own"
            ) from error
        raise


def disk_full(root: Path) -> HostResources:
    """Return the error of a full disk, with the free space and the ways to make more."""
    facts = os.statvfs(root)
    free = facts.f_bavail * facts.f_frsize >> 20
    return HostResources.of(
        f"no space left for images in {root} ({free} MiB and {facts.f_favail} files free): make room, "
        "`sandfleet-worker images rm` what is not needed, or set SANDFLEET_IMAGES__ROOT to a larger disk"
    )
