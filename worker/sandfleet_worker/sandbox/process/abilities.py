"""Find out the abilities of a runsc: ask it, prove them by a boot, remember them by its hash.

A way to boot that is not the best one may have been taken because the host was short of something
for a moment. So it is remembered for other processes only where a closed file or folder explains it.

Only this module knows how releases of gVisor differ. The version of a self-built runsc says
nothing. So a version only decides in which order the ways to boot are tried.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import GVisorNotAvailable, SandboxError

from sandfleet_worker.sandbox.process.runsc import QUIET_FLAG, Abilities, RunscBinary, release_date
from sandfleet_worker.sandbox.process.sidecars import find_closed_path
from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

INHERITABLE_RELEASE = 20240916
"""From this release on an exec by root gets bounding and inheritable capabilities.

Before, the spec's capabilities go to the host's sentry, and inheritable ones make the boot fail
(gVisor commits ae76d34ef, a178e09bb).
"""

EROFS_MOUNT_RELEASE = 20260126
"""From this release on EROFS can be mounted anywhere, not only as the root (tried)."""

OTHER_WAY_MAY_WORK = frozenset({ErrorCode.SANDBOX_CREATION_FAILED, ErrorCode.SANDBOX_EXECUTION_FAILED})
"""Codes of a failed boot for which another way may work. Without a platform or memory, and where
boots hang, none does.
"""

MEMORY_FILE = "runsc-abilities.json"
MAX_REMEMBERED = 16


class AbilityFinder:
    """Finds out how sandboxes boot with a runsc; safe for threads.

    `boot` boots one sandbox with the abilities that it is given, runs a program of ours in it, and
    raises `SandboxError` if that fails. `folder` keeps the result for the next process.
    """

    def __init__(self, folder: Path, *, is_rootless: bool, boot: Callable[[RunscBinary, str], object]) -> None:
        self._file, self._is_rootless, self._boot = folder / MEMORY_FILE, is_rootless, boot
        self._lock = threading.Lock()
        self._found: dict[RunscBinary, RunscBinary] = {}

    def is_known(self, binary: RunscBinary) -> bool:
        """Whether `complete` answers at once."""
        return binary in self._found

    def complete(self, binary: RunscBinary, platform: str) -> RunscBinary:
        """Return `binary` with its abilities.

        Boot up to five sandboxes on `platform` if they are not known yet.

        Raises:
            SandboxError: no way to boot works. It is the failure of the way that should have
                worked.
        """
        if (found := self._found.get(binary)) is not None:
            return found
        with self._lock:
            if (found := self._found.get(binary)) is None:
                found = self._find(binary, platform)
                self._found[binary] = found
        return found

    def forget(self, binary: RunscBinary) -> None:
        """Try the ways to boot again at the next call: the remembered one does not work."""
        with self._lock:
            self._found = {asked: found for asked, found in self._found.items() if found.path != binary.path}
            self._write(_key(binary), None)

    def _find(self, binary: RunscBinary, platform: str) -> RunscBinary:
        key = _key(binary)
        known = self._read().get(key, {})
        if known.keys() == asdict(Abilities()).keys():  # else another release of ours may have written it
            return binary.with_abilities(Abilities(**known))
        first: SandboxError | None = None
        is_closed = find_closed_path(binary) is not None
        for abilities in candidates(binary, is_rootless=self._is_rootless):
            able = binary.with_abilities(abilities)
            try:
                self._boot(able, platform)
            except SandboxError as error:
                log.info("runsc %s does not boot with %s: %s", binary.version, abilities, error.message)
                # A runsc that nobody may execute but not read tells it as a fault of the platform.
                is_explained = is_closed and error.code is ErrorCode.GVISOR_NOT_AVAILABLE
                if error.code not in OTHER_WAY_MAY_WORK and not (is_explained and abilities.is_directfs_off):
                    raise
                first = first or error
            else:
                able = self._try_datasets(able, platform)
                if first is None or is_closed:
                    self._write(key, able.abilities)
                return able
        assert first is not None  # there is one candidate at least
        raise first

    def _try_datasets(self, able: RunscBinary, platform: str) -> RunscBinary:
        """Return `able` with the ability to mount datasets if a boot with one works."""
        released = release_date(able.version)
        if released is not None and released < EROFS_MOUNT_RELEASE:
            return able
        with_datasets = able.with_abilities(replace(able.abilities, mounts_erofs=True))
        try:
            self._boot(with_datasets, platform)
        except SandboxError as error:
            log.info("runsc %s mounts no datasets: %s", able.version, error.message)
            if error.code not in OTHER_WAY_MAY_WORK:
                raise
            return able
        return with_datasets

    def _read(self) -> dict[str, dict[str, bool]]:
        try:
            known = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, key: str, abilities: Abilities | None) -> None:
        """Remember the abilities for other processes. If that fails, they only try again."""
        known = {other: facts for other, facts in self._read().items() if other != key}
        if abilities is not None:
            known[key] = asdict(abilities)
        newest = dict(list(known.items())[-MAX_REMEMBERED:])
        partial = self._file.with_name(f"{MEMORY_FILE}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(newest))
            partial.rename(self._file)
        except OSError as error:
            log.debug("cannot remember what runsc can do: %s", error)


def candidates(binary: RunscBinary, *, is_rootless: bool) -> Iterator[Abilities]:
    """Yield the ways to boot with `binary`, the best first."""
    is_quiet = QUIET_FLAG in binary.flags
    released = release_date(binary.version)
    is_old = released is not None and released < INHERITABLE_RELEASE
    # Without --directfs=false the host's sentry is root with six capabilities; rootless it would
    # get more of them.
    directfs = [False] if is_rootless or "directfs" not in binary.flags else [True, False]
    for inherits in (not is_old, is_old):
        for is_off in directfs:
            yield Abilities(inherits_capabilities=inherits, is_directfs_off=is_off, is_quiet=is_quiet)


def _key(binary: RunscBinary) -> str:
    """Return the key of a runsc: its hash, its path, and what of it is closed to the user nobody.

    So the ways to boot are tried again once it is open.

    Raises:
        GVisorNotAvailable: it is gone, or it can be executed but not read.
    """
    try:
        facts = os.stat(binary.path)  # noqa: PTH116  as in runsc.py
        closed = find_closed_path(binary)
        place = os.path.realpath(binary.path) + (f" closed at {closed}" if closed else " open")
        return f"{_hash(binary.path, facts.st_mtime_ns, facts.st_size)} {place}"
    except OSError as error:
        if is_resource_error(error):
            raise
        msg = f"cannot read {binary.path}: {error.strerror}: make it readable, or set SANDFLEET_RUNSC__PATH"
        raise GVisorNotAvailable.of(msg) from error


@functools.lru_cache(maxsize=8)
def _hash(path: str, _mtime_ns: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
