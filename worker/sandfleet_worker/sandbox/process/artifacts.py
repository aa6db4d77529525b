"""The files that leave a sandbox after its program's end: what is asked for, and what came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from sandfleet_config.errors import SpecInvalid

from sandfleet_worker.sandbox.process.globs import Glob
from sandfleet_worker.sandbox.process.inputs import WORK_FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB: Final = 1 << 20
COLLECT_SECONDS: Final = 60.0
"""How long the collection of one job's files may take."""


@dataclass(frozen=True, slots=True)
class ArtifactPattern:
    """Files to collect from ``/work``: `glob` is relative to it, or absolute and below it.

    `max_bytes` bounds each file; 0 is the host's bound. `when` tells after which ends: ``ok`` is
    the code ``OK``, ``failed`` any other.
    """

    glob: str
    max_bytes: int = 0
    when: Literal["always", "ok", "failed"] = "always"

    def compile(self) -> Glob:
        """Return the pattern relative to ``/work``.

        Raises:
            SpecInvalid: it is not below ``/work``.
        """
        try:
            glob = Glob(self.glob.removeprefix(f"{WORK_FOLDER}/"))
        except ValueError as error:
            raise _new_fault(self.glob, str(error)) from error
        if glob.pattern.startswith("/"):
            raise _new_fault(self.glob, f"artifacts are collected from {WORK_FOLDER} only: write the files there")
        return glob


def _new_fault(glob: str, why: str) -> SpecInvalid:
    message = f"{glob[:200]!r}: {why}"
    return SpecInvalid.of(f"artifacts: {message}", errors=[{"field": "artifacts", "message": message}])


class ArtifactSink(Protocol):
    """Takes the collected files, one after another, in the job's thread.

    An ``OSError`` or a `SandboxError` ends the collection. What came before it counts.
    """

    def begin(self, path: str, size: int, mode: int) -> None:
        """Begin a file of `size` bytes; `path` is relative to ``/work`` and has no part ``..``."""
        ...

    def write(self, chunk: bytes) -> None:
        """Take the next bytes of the file that was begun."""
        ...

    def end(self) -> None:
        """All of its bytes have come: it counts from now on."""
        ...

    def drop(self) -> None:
        """It could not be read to its end: forget it."""
        ...


@dataclass(frozen=True, slots=True)
class CollectLimits:
    """The host's bounds of one collection.

    `max_entries` counts everything that is found in the folders that are searched.
    """

    max_files: int = 1000
    max_file_bytes: int = 64 * MIB
    max_total_bytes: int = 256 * MIB
    max_entries: int = 50_000
    seconds: float = COLLECT_SECONDS


@dataclass(frozen=True, slots=True)
class ArtifactRequest:
    """Patterns of the files to collect from one job, the bounds, and the sink that takes them."""

    patterns: Sequence[ArtifactPattern]
    sink: ArtifactSink
    limits: CollectLimits = CollectLimits()

    def check(self) -> None:
        """Refuse a pattern that cannot be used.

        Raises:
            SpecInvalid: says which and why.
        """
        for pattern in self.patterns:
            pattern.compile()

    def select(self, *, is_ok: bool) -> Sequence[ArtifactPattern]:
        """Return the patterns that count after this end."""
        return [pattern for pattern in self.patterns if pattern.when in {"always", "ok" if is_ok else "failed"}]


@dataclass(frozen=True, slots=True)
class CollectedFile:
    """A file that the sink has whole; `path` is relative to ``/work``, `size` in bytes."""

    path: str
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class Collection:
    """The files that a request brought.

    `lost` names missing ones and the reason; empty if none is missing.
    """

    files: Sequence[CollectedFile] = ()
    lost: str = ""
