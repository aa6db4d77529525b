"""The uploads of a worker take a bounded amount of memory together, in the order in which they came."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.store.protocol import UPLOAD_BYTES, StoreDown
from sandfleet_worker.files.spool import SpooledFile
from sandfleet_worker.files.upload_budget import UploadBudget
from sandfleet_worker.files.uploads import LARGE_BUDGET_BYTES, Uploader
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 64 << 20


def wait_never() -> None:
    """Allow any wait."""


class GatedStore:
    """Takes files once it is let; counts the uploads that are under way."""

    name = "s3://jobs"

    def __init__(self) -> None:
        self._permits, self._lock = threading.Semaphore(0), threading.Lock()
        self.now = self.most = 0
        self.is_down = False

    def let_end(self, uploads: int = 1000) -> None:
        self._permits.release(uploads)

    def keep(self, names: object, seconds: float) -> None:
        del names, seconds

    def put_file(self, sha256: str, path: Path, check: object = None) -> bool:
        del sha256, path, check
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self._permits.acquire(timeout=30)
        with self._lock:
            self.now -= 1
        if self.is_down:
            msg = "s3://jobs cannot be reached"
            raise StoreDown(msg)
        return True


def pause(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def new_uploader(store: GatedStore, deadline_seconds: float = 60.0) -> Uploader:
    known = cast("Any", store)
    return Uploader(known, known, keep_seconds=60, deadline_seconds=deadline_seconds, pause=pause)


def upload(uploader: Uploader, number: int, size: int, path: Path) -> Outcome:
    file = SpooledFile("out", size, 0o644, f"{number:064x}", path)
    return uploader.store(Outcome.of(ErrorCode.OK, "job"), [file], "", uploader.new_limits(lambda: False))


def test_large_files_of_many_jobs_are_uploaded_two_at_a_time(tmp_path: Path) -> None:
    store = GatedStore()
    uploader = new_uploader(store)
    assert LARGE_BUDGET_BYTES // UPLOAD_BYTES == 2
    with ThreadPoolExecutor(12) as threads:
        ends = [threads.submit(upload, uploader, number, LARGE, tmp_path) for number in range(12)]
        wait_until(lambda: store.now == 2, 5, "two are under way")
        time.sleep(0.3)
        store.let_end()
        assert [end.result(30).artifacts_lost for end in ends] == [None] * 12
    assert store.most == 2


def test_small_files_are_uploaded_side_by_side(tmp_path: Path) -> None:
    store = GatedStore()
    uploader = new_uploader(store)
    with ThreadPoolExecutor(40) as threads:
        ends = [threads.submit(upload, uploader, number, 1000, tmp_path) for number in range(40)]
        wait_until(lambda: store.now == 40, 10, "all are under way")
        store.let_end()
        assert {end.result(30).artifacts_lost for end in ends} == {None}


def test_small_files_do_not_wait_for_large_ones(tmp_path: Path) -> None:
    store = GatedStore()
    uploader = new_uploader(store)
    with ThreadPoolExecutor(3) as threads:
        ends = [threads.submit(upload, uploader, number, LARGE, tmp_path) for number in range(2)]
        wait_until(lambda: store.now == 2, 5, "two large ones are under way")
        ends.append(threads.submit(upload, uploader, 2, 1000, tmp_path))
        wait_until(lambda: store.now == 3, 5, "the small one is under way, too")
        store.let_end()
        assert [end.result(30).artifacts_lost for end in ends] == [None] * 3


def test_a_large_upload_is_not_overtaken() -> None:
    budget = UploadBudget(10)
    order: list[str] = []

    def hold(name: str, size: int) -> None:
        with budget.hold(size, wait_never):
            order.append(name)

    with budget.hold(4, wait_never):
        large = threading.Thread(target=hold, args=("large", 99))
        large.start()
        wait_until(lambda: len(budget._waiting) == 1, 5, "the large one waits")
        small = threading.Thread(target=hold, args=("small", 1))
        small.start()
        wait_until(lambda: len(budget._waiting) == 2, 5, "the small one waits behind it")
        time.sleep(0.3)
        assert order == []
    large.join(5)
    small.join(5)
    assert order == ["large", "small"]


def test_a_wait_that_is_given_up_gives_its_place_to_the_next() -> None:
    budget = UploadBudget(10)

    def give_up() -> None:
        raise RuntimeError("the worker stops")

    with budget.hold(10, wait_never):
        with pytest.raises(RuntimeError), budget.hold(10, give_up):
            pass
        assert not budget._waiting
    with budget.hold(10, wait_never):
        pass


def test_jobs_that_wait_for_others_give_up_at_their_deadline_while_the_store_is_down(tmp_path: Path) -> None:
    store = GatedStore()
    store.is_down = True
    uploader = new_uploader(store, deadline_seconds=1.0)
    with ThreadPoolExecutor(5) as threads:
        others = [threads.submit(upload, uploader, number, LARGE, tmp_path) for number in range(4)]
        wait_until(lambda: store.now == 2 and len(uploader._large._waiting) == 2, 5, "two hang, and two wait")
        last = threads.submit(upload, uploader, 4, LARGE, tmp_path)
        wait_until(lambda: len(uploader._large._waiting) == 3, 5, "the last one waits, too")
        store.let_end(2)  # two attempts fail, and the next two hang
        lost = str(last.result(20).artifacts_lost)
        store.let_end()
        assert "s3://jobs cannot be reached (waited 1 s for other uploads)" in lost
        for end in others:
            assert "cannot be reached" in str(end.result(30).artifacts_lost)


def test_a_failure_before_a_jobs_end_does_not_end_its_wait(tmp_path: Path) -> None:
    store = GatedStore()
    uploader = new_uploader(store, deadline_seconds=0.5)
    uploader._large.note_failure("an earlier outage")
    time.sleep(0.6)
    with ThreadPoolExecutor(3) as threads:
        ends = [threads.submit(upload, uploader, number, LARGE, tmp_path) for number in range(3)]
        wait_until(lambda: len(uploader._large._waiting) == 1, 5, "one waits")
        time.sleep(1)
        store.let_end()
        assert [end.result(30).artifacts_lost for end in ends] == [None] * 3
