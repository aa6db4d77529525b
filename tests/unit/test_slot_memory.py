"""Memory that the jobs of a host reserve together, by the files of their slots."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.errors import HostResources
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.held_claims import HeldClaims
from sandfleet_worker.delivery.host_slots import HostSlots
from sandfleet_worker.job_start import JobStart
from sandfleet_worker.sandbox.process.cancellation import Cancellation

if TYPE_CHECKING:
    from sandfleet_worker.delivery.host_slots import Slot


def take(slots: HostSlots) -> Slot:
    slot = slots.acquire()
    assert slot is not None
    return slot


def read(slots: HostSlots) -> tuple[int, int]:
    memory = slots.read_memory()
    assert memory is not None
    return memory.budget, memory.free


def test_new_jobs_of_all_workers_leave_the_memory_that_a_job_wants_again(tmp_path: Path) -> None:
    one, other = HostSlots(tmp_path, 4, 1000), HostSlots(tmp_path, 4, 1000)
    running, mine, new = take(other), take(one), take(other)
    assert running.reserve(600)
    with one.wanting(400), one.wanting(300):
        for slots in (one, other):
            memory = slots.read_memory()
            assert memory is not None
            assert (memory.free, memory.wanted, memory.free_for_new) == (400, 700, 0)
        assert not new.reserve(1, is_new=True)
        assert running.reserve(500)
        assert mine.reserve(400), "the job that wants it gets it"
    assert not new.reserve(101, is_new=True)
    assert new.reserve(100, is_new=True)
    other.close()
    one.close()


def test_a_job_that_has_waited_and_fits_its_host_no_longer_does_not_wait_for_ever(tmp_path: Path) -> None:
    slots = HostSlots(tmp_path, 1, 1000)
    claim, held = Claim("c", "job", Flag.START, b"", is_waiting=True), HeldClaims(1, waiting_limit=1)
    assert held.take_capacity(0)
    held.add(claim, take(slots))
    assert held.reserve(claim, 700)
    held.wait(claim, is_remote=True)
    held.give_back_slot(claim)
    assert held.end_wait(claim)
    smaller = HostSlots(tmp_path, 1, 600)
    intake: Any = SimpleNamespace(held_claims=held)
    start = JobStart(intake, slots, claim, Cancellation(), lambda: None)
    with pytest.raises(HostResources, match="needs 700 bytes of memory, and all jobs of this host may use 600 bytes"):
        start._take_slot()
    memory = slots.read_memory()
    assert memory is not None
    assert (memory.free, memory.wanted) == (600, 0), "nothing is kept for it"
    smaller.close()
    slots.close()


def test_jobs_reserve_memory_over_all_workers_of_a_host_and_the_smallest_budget_counts(tmp_path: Path) -> None:
    one, other = HostSlots(tmp_path, 4, 1000, 100), HostSlots(tmp_path, 4, 900, 50)
    assert read(one) == read(other) == (750, 750)
    first, second = take(one), take(other)

    assert first.reserve(500)
    assert read(other) == (750, 250)
    assert not second.reserve(251)
    assert second.reserve(250)
    assert read(one) == (750, 0)
    assert first.reserve(400), "instead of what it had"
    first.release()
    assert read(other) == (750, 500)
    assert not first.reserve(1), "it is not held any more"
    other.close()
    assert read(one) == (900, 650), "what the other left running is still counted"
    second.release()
    assert read(one) == (900, 900)
    assert HostSlots(tmp_path, 1).read_memory() is None, "nobody told this one"


def test_the_reservation_of_a_killed_worker_is_gone_with_it(tmp_path: Path) -> None:
    program = f"""
import signal
from pathlib import Path
from sandfleet_worker.delivery.host_slots import HostSlots
slot = HostSlots(Path({str(tmp_path)!r}), 1, 1000).acquire()
print(slot.reserve(600), flush=True)
signal.pause()
"""
    slots = HostSlots(tmp_path, 1, 1000)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert read(slots) == (1000, 400)
        holder.kill()
    assert read(slots) == (1000, 1000)
    with take(slots) as slot:
        assert read(slots) == (1000, 1000), "what it left in the file is not the next holder's"
        assert slot.reserve(1000)


def test_workers_that_race_for_memory_never_reserve_more_than_there_is(tmp_path: Path) -> None:
    workers = [HostSlots(tmp_path, 8, 1000), HostSlots(tmp_path, 8, 1000)]
    reserved: list[int] = []
    peak: list[int] = []
    lock = threading.Lock()

    def work(slots: HostSlots) -> None:
        for _ in range(10):
            with take(slots) as slot:
                if not slot.reserve(400):
                    continue
                with lock:
                    reserved.append(400)
                    peak.append(sum(reserved))
                threading.Event().wait(0.001)
                with lock:
                    reserved.pop()

    threads = [threading.Thread(target=work, args=(workers[number % 2],)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert max(peak) == 800
