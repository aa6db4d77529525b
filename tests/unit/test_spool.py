"""Files of jobs in the spool: none stays after its job, and a full disk fails no job."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_worker.files import spool as spool_module
from sandfleet_worker.files.spool import JobSpool, Spool, StreamSpool, remove_dead_spools

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = 1 << 20


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path, ROOM)
    yield opened
    opened.close()


def count_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class FullDisk:
    """A file whose buffered bytes find no room when it is closed."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        self._file.close()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    make: Any = spool_module._OpenFile.__init__

    def init(self: Any, *facts: Any) -> None:
        make(self, *facts[:-1], FullDisk(facts[-1]))

    monkeypatch.setattr(spool_module._OpenFile, "__init__", init)


def test_a_disk_that_is_full_at_the_end_of_a_stream_loses_the_stream_only(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch)
    with spool.new_job() as job:
        stream = StreamSpool(job, kept_bytes=1, max_bytes=100)
        stream.write(b"more than is kept")
        file, why = stream.finish("stdout")
        assert (file, why) == (None, "this host cannot keep it: No space left on device")
        job.begin("out", 3, 0o644)
        job.write(b"abc")
        with pytest.raises(OSError, match="No space"):
            job.end()
        job.begin("other", 3, 0o644)
    assert list(spool.folder.iterdir()) == []
    spool.take(ROOM)  # all is given back


def test_a_job_whose_stream_was_never_finished_leaves_no_descriptor(spool: Spool) -> None:
    before = count_descriptors()
    job = spool.new_job()
    stream = StreamSpool(job, kept_bytes=1, max_bytes=100)
    stream.write(b"more than is kept")
    job.close()
    assert count_descriptors() == before
    assert stream is not None


def test_workers_that_start_at_once_keep_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One looks for dead workers' folders while another has made its own, and not locked it yet."""
    lock = fcntl.flock
    is_first = threading.Event()

    def flock(descriptor: int, how: int) -> None:
        if not is_first.is_set():
            is_first.set()
            remove_dead_spools(tmp_path)  # as the other worker does at this moment
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    spool = Spool(tmp_path, ROOM)
    job = spool.new_job()
    assert isinstance(job, JobSpool)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_workers_folder_goes_and_a_live_ones_stays(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "worker-dead" / "0").mkdir(parents=True)
    remove_dead_spools(tmp_path)
    assert list(tmp_path.iterdir()) == [spool.folder]
