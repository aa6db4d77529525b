"""Slots of a host: counted over its workers, given in order, and freed with a killed worker."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandfleet_worker.delivery.folder_watch import FolderWatch
from sandfleet_worker.delivery.host_slots import HostSlots
from sandfleet_worker.delivery.slot_folder import GATE, STALE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.delivery.host_slots import Slot


@pytest.fixture
def cancel_fd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def take(slots: HostSlots) -> Slot:
    slot = slots.acquire()
    assert slot is not None
    return slot


def is_full(slots: HostSlots) -> bool:
    """Whether an acquire would wait: one with its cancel already set returns at once."""
    fd = os.eventfd(1)
    try:
        slot = slots.acquire(fd)
    finally:
        os.close(fd)
    if slot is not None:
        slot.release()
    return slot is None


def test_slots_are_counted_over_all_workers_of_a_host(tmp_path: Path) -> None:
    one, other = HostSlots(tmp_path, 2), HostSlots(tmp_path, 2)
    first, second = take(one), take(other)

    assert first.number != second.number
    assert is_full(one)
    assert is_full(other)
    first.release()
    assert not is_full(other)


def test_release_is_idempotent(tmp_path: Path) -> None:
    slots = HostSlots(tmp_path, 1)
    with take(slots) as slot:
        slot.release()
        slot.release()
    assert not is_full(slots)


def test_the_greatest_cap_counts_while_its_worker_lives(tmp_path: Path) -> None:
    small, great = HostSlots(tmp_path, 1), HostSlots(tmp_path, 3)
    held = [take(small), take(small), take(great)]
    assert is_full(small)

    great.close()

    assert is_full(small)
    held[0].release()
    held[1].release()
    assert is_full(small), "the third, above the cap of those who are left, still counts"
    held[2].release()
    assert not is_full(small)
    with take(small):
        assert is_full(small)


def test_a_wait_ends_with_a_release_in_another_worker(tmp_path: Path) -> None:
    one, other = HostSlots(tmp_path, 1), HostSlots(tmp_path, 1)
    held = take(one)
    taken: list[Slot] = []
    thread = threading.Thread(target=lambda: taken.append(take(other)))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()

    held.release()

    thread.join(5)
    assert len(taken) == 1


def test_a_wait_can_be_cancelled(tmp_path: Path, cancel_fd: int) -> None:
    slots = HostSlots(tmp_path, 1)
    held = take(slots)
    answers: list[Slot | None] = []
    thread = threading.Thread(target=lambda: answers.append(slots.acquire(cancel_fd)))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()

    os.eventfd_write(cancel_fd, 1)

    thread.join(5)
    assert answers == [None]
    held.release()
    assert not is_full(slots)


def test_whoever_waited_longest_on_the_host_is_next(tmp_path: Path) -> None:
    one, other = HostSlots(tmp_path, 1), HostSlots(tmp_path, 1)
    held = take(one)
    order: list[str] = []

    def work(name: str, slots: HostSlots) -> None:
        with take(slots):
            order.append(name)

    threads = [
        threading.Thread(target=work, args=pair) for pair in (("first", other), ("second", one), ("third", other))
    ]
    for thread in threads:
        thread.start()
        thread.join(0.05)
    held.release()
    for thread in threads:
        thread.join(5)

    assert order == ["first", "second", "third"]


def test_many_threads_never_exceed_the_cap(tmp_path: Path) -> None:
    workers = [HostSlots(tmp_path, 3), HostSlots(tmp_path, 3)]
    running: list[int] = []
    peak: list[int] = []
    lock = threading.Lock()

    def work(slots: HostSlots) -> None:
        for _ in range(10):
            with take(slots) as slot:
                with lock:
                    running.append(slot.number)
                    peak.append(len(running))
                threading.Event().wait(0.001)
                with lock:
                    running.remove(slot.number)

    threads = [threading.Thread(target=work, args=(workers[number % 2],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(peak) == 80
    assert max(peak) == 3


def test_a_worker_that_was_stopped_in_the_line_holds_nobody_up(tmp_path: Path) -> None:
    one, other = HostSlots(tmp_path, 1), HostSlots(tmp_path, 1)
    other._publish_wait(1)
    assert is_full(one), "it is the other's turn"

    long_ago = time.time() - 2 * STALE_SECONDS
    os.utime(tmp_path / other._files.name, (long_ago, long_ago))

    assert not is_full(one)


def test_a_worker_that_is_stopped_while_it_holds_the_gate_does_not_stop_the_host(tmp_path: Path) -> None:
    one, other = HostSlots(tmp_path, 2), HostSlots(tmp_path, 2)
    frozen = os.open(tmp_path / GATE, os.O_RDWR)
    fcntl.flock(frozen, fcntl.LOCK_EX)
    try:
        started = time.monotonic()
        first, second = take(one), take(other)
        assert first.number != second.number
        assert is_full(one)
        first.release()
        take(other).release()
        assert time.monotonic() - started < 6
    finally:
        os.close(frozen)
    second.release()
    with take(one), take(other):
        assert is_full(other)


def test_a_wait_at_a_great_cap_looks_a_few_times_a_second_and_yet_ends_at_once(tmp_path: Path) -> None:
    """Polling each 6 ms at three system calls a slot was 20,000 calls/s and a fifth of a core."""
    one, other = HostSlots(tmp_path, 64), HostSlots(tmp_path, 64)
    held = [take(one) for _ in range(64)]
    looks: list[float] = []
    ended: list[float] = []

    def wait() -> None:
        slot = other.acquire(on_poll=lambda: looks.append(time.monotonic()))
        ended.append(time.monotonic())
        assert slot is not None
        slot.release()

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(1)
    count, released = len(looks), time.monotonic()
    held[17].release()
    thread.join(5)

    assert 1 < count <= 10
    assert ended[0] - released < 0.1


def test_a_killed_holder_wakes_who_waits(tmp_path: Path) -> None:
    program = f"""
import signal, time
from pathlib import Path
from sandfleet_worker.delivery.host_slots import HostSlots
slots = HostSlots(Path({str(tmp_path)!r}), 1)
held = slots.acquire()
print("held", flush=True)
signal.pause()
"""
    slots = HostSlots(tmp_path, 1)
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline()
    ended: list[float] = []

    def wait() -> None:
        take(slots).release()
        ended.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)

    killed = time.monotonic()
    holder.kill()
    thread.join(5)
    holder.wait()
    holder.stdout.close()

    assert ended[0] - killed < 1


def test_without_a_watch_waits_end_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderWatch, "__init__", lambda self, _: setattr(self, "fd", None))
    test_a_wait_ends_with_a_release_in_another_worker(tmp_path)


def test_no_slot_and_no_descriptor_is_lost_where_descriptors_run_out(tmp_path: Path) -> None:
    slots, other = HostSlots(tmp_path, 2), HostSlots(tmp_path, 3)
    with take(other), take(other), take(other):
        pass
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.open("/dev/null", os.O_RDONLY)
    os.close(highest)
    count = len(list(Path("/proc/self/fd").iterdir()))
    for spare in range(6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, before[1]))
        try:
            with contextlib.suppress(OSError):
                take(slots).release()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert len(list(Path("/proc/self/fd").iterdir())) == count, spare
        with take(slots), take(slots), take(slots):
            assert is_full(slots), spare
