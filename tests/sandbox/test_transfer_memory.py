"""Large files in and out, job after job: the worker's memory stays flat.

`make test-store` does it a hundred times.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_worker.sandbox.process.inputs import InputFile
from transferring import Sink

if TYPE_CHECKING:
    from transferring import Carry

MIB = 1 << 20
JOBS = int(os.environ.get("TEST_TRANSFERS", "2"))
SIZE = 64 * MIB
MOST_GROWTH = 24 * MIB


def read_memory() -> int:
    """Return the bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class SpoolSink(Sink):
    """Writes to a file, as a worker does, and notes the most memory that was seen meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file_path, self.most = path, 0

    def begin(self, path: str, size: int, mode: int) -> None:
        super().begin(path, size, mode)
        self._file = self._file_path.open("wb")

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self.most = max(self.most, read_memory())

    def end(self) -> None:
        self._file.close()
        self.files["out"] = b""

    def drop(self) -> None:
        self._file.close()


@pytest.mark.timeout(300 + 20 * JOBS)
def test_the_workers_memory_stays_flat(carry: Carry, tmp_path: Path) -> None:
    source, spool = tmp_path / "source", tmp_path / "spool"
    with source.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
    digest = hashlib.sha256(source.read_bytes()).digest()
    carry("true", artifacts=["*"])
    before, most, began = read_memory(), 0, time.monotonic()
    for _ in range(JOBS):
        sink = SpoolSink(spool)
        file_in = InputFile("big", SIZE, lambda: source.open("rb"))
        carried = carry(
            "mv", "big", "out", files=[file_in], artifacts=["out"], sink=sink, resources={"memory_bytes": "256MiB"}
        )
        assert carried.outcome.code is ErrorCode.OK
        assert carried.lost == ""
        most = max(most, sink.most)
    seconds = (time.monotonic() - began) / JOBS
    with spool.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == digest
    began = time.monotonic()
    shutil.copy(source, spool), shutil.copy(spool, source)
    print(  # noqa: T201  for the eyes of `make test-store`
        f"{JOBS} jobs, 64 MiB in and out: {seconds:.2f} s each, two plain copies {time.monotonic() - began:.2f} s; "
        f"memory {before >> 20} MiB before, {most >> 20} MiB at most"
    )
    assert most - before < MOST_GROWTH
