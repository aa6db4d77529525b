"""Files of a job go to the store; a store that is down delays its end by one deadline at most."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome, StreamOutput
from sandfleet_config.settings import PolicySettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.store.protocol import StoreDown
from sandfleet_worker.delivery.settlement import Finish
from sandfleet_worker.files.host_files import JobFiles
from sandfleet_worker.files.inputs import JobInputs
from sandfleet_worker.files.spool import Spool
from sandfleet_worker.files.uploads import LONGEST_SECONDS, Uploader
from sandfleet_worker.job_run import JobRun
from sandfleet_worker.sandbox.process.cancellation import Cancellation

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_SECONDS = 2.0


class DownStore:
    """Refuses all."""

    name = "s3://jobs"

    def keep(self, names: object, seconds: float) -> None:
        del names, seconds

    def put_file(self, sha256: str, path: Path, check: object = None) -> bool:
        del sha256, path, check
        msg = "s3://jobs cannot be reached"
        raise StoreDown(msg)


class SlowStore(DownStore):
    """Takes a file, and longer than anybody waits."""

    def __init__(self, clock: list[float], seconds: float = 0.0) -> None:
        self._clock, self._seconds = clock, seconds
        self.is_over = threading.Event()

    def put_file(self, sha256: str, path: Path, check: object = None) -> bool:
        del sha256, path, check
        self._clock[0] += self._seconds
        return self.is_over.wait(30)


def end_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    clock: list[float],
    store: DownStore,
    cancel: Cancellation | None = None,
) -> tuple[Outcome, float]:
    """Deliver two streams and an artifact; return the outcome, and its wait by its own clock."""
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def pause(seconds: float) -> bool:
        clock[0] += seconds
        return False

    known = cast("Any", store)
    uploader = Uploader(known, known, keep_seconds=60, deadline_seconds=DEADLINE_SECONDS, pause=pause)
    spool = Spool(tmp_path, 1 << 30)
    spec = SandboxSpec.model_validate(
        {"image": "python", "output": {"store": True, "max_bytes": 4096}, "artifacts": ["*"]}
    )
    files = JobFiles(
        spec, JobInputs(), spool.new_job(), uploader, policy=PolicySettings(), cancel=cancel or Cancellation()
    )
    assert files.transfer.keep_output is not None
    assert files.transfer.artifacts is not None
    for name in ("stdout", "stderr"):
        files.transfer.keep_output(name)(bytes(5000))
    sink = files.transfer.artifacts.sink
    sink.begin("a.txt", 1, 0o644)
    sink.write(b"a")
    sink.end()
    outcome = files.deliver(Outcome.of(ErrorCode.OK, "job", stdout=StreamOutput(), stderr=StreamOutput()))
    files.close()
    spool.close()
    return outcome, clock[0] - 1000.0


def test_all_of_a_job_waits_for_a_store_that_is_down_for_one_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, waited = end_job(tmp_path, monkeypatch, clock=[1000.0], store=DownStore())
    assert waited <= DEADLINE_SECONDS
    assert outcome.code is ErrorCode.OK
    assert outcome.artifacts_lost is not None
    for part in ("stdout in the store", "stderr in the store", "1 of 1 file is not in the store"):
        assert part in outcome.artifacts_lost


def test_an_upload_that_goes_on_for_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    store = SlowStore(clock, LONGEST_SECONDS + 60)
    outcome, _ = end_job(tmp_path, monkeypatch, clock=clock, store=store)
    store.is_over.set()
    assert outcome.artifacts == ()
    assert "stdout in the store: the store did not take them within 3002 s" in str(outcome.artifacts_lost)


def test_an_upload_ends_with_its_worker_and_not_with_a_cancel_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdrawn, cancelled = Cancellation(), Cancellation()
    withdrawn.cancel(ErrorCode.WORKER_LOST, "the worker stops")
    cancelled.cancel()
    store = SlowStore([0.0])
    outcome, _ = end_job(tmp_path, monkeypatch, clock=[1000.0], store=store, cancel=withdrawn)
    assert outcome.code is ErrorCode.OK
    assert str(outcome.artifacts_lost).count("the worker stopped during the upload") == 3
    timer = threading.Timer(0.5, store.is_over.set)
    timer.start()
    outcome, _ = end_job(tmp_path, monkeypatch, clock=[1000.0], store=store, cancel=cancelled)
    assert (len(outcome.artifacts), outcome.artifacts_lost) == (1, None)
    timer.join()


def test_a_fault_of_ours_at_the_delivery_does_not_hide_the_end() -> None:
    def deliver(outcome: Outcome) -> Outcome:
        raise RuntimeError(outcome.job_id)

    run = JobRun.__new__(JobRun)
    run._transfer = cast("Any", SimpleNamespace(deliver=deliver, has_files=True))
    run._job = cast("Any", SimpleNamespace(job_id="job"))
    run.message = cast("Any", SimpleNamespace(request=None))
    run._host = cast("Any", SimpleNamespace(worker="host-1"))
    settlement = run.store_files(Finish(Outcome.of(ErrorCode.OK, "job"), [], ""))
    assert isinstance(settlement, Finish)
    assert settlement.outcome.code is ErrorCode.OK
    assert settlement.outcome.artifacts_lost == "a fault in sandfleet itself: see the log of worker host-1"
