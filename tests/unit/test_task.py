"""The task settles its claim itself, once, and tells Celery what it did."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import ExitNonZero, ImageNotFound, SandboxCreationFailed, WorkerLost
from sandfleet_config.outcome import Attempt, Outcome
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import JobRequest
from sandfleet_worker.celery_worker.backend import ClaimsBackend
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.read_message import JobMessage
from sandfleet_worker.delivery.settlement import Finish, GiveBack, PutBack, Release, Retry
from sandfleet_worker.job_handle import JobHandle, set_current_job
from sandfleet_worker.job_run import JobRun
from sandfleet_worker.sandbox.process.packed_job import NO_TRANSFER
from sandfleet_worker.tasks import Fenced, Requeued, RunTask

if TYPE_CHECKING:
    from sandfleet_worker.delivery.settlement import Settlement

ATTEMPT = Attempt(host="h", worker="h.1", started=datetime(2026, 1, 2, tzinfo=UTC))


class Worker:
    """A worker whose sandboxes, slots and Redis are the test's."""

    def __init__(self, ending: Any, *, is_ours: bool = True, has_other_host: bool = False, **claim: Any) -> None:
        self.claim = Claim("c", "job", Flag.START, b"m", attempts=(ATTEMPT,), **claim)
        self.settled: list[Settlement] = []
        self.job = JobHandle(1, "job", "c")
        self._ending, self._is_ours, self._has_other_host = ending, is_ours, has_other_host

    def run(self, **spec: Any) -> Any:
        held = SimpleNamespace(find=lambda _: self.claim, free_slot=lambda _: None)
        intake = SimpleNamespace(held_claims=held, settle=self._settle, has_other_host=lambda *_: self._has_other_host)
        runner = SimpleNamespace(execute=self._execute)
        task = RunTask()
        files = SimpleNamespace(prepare=lambda *_: None, keep_for_dead_letter=lambda *_: None)  # of a job without any
        without: dict[str, Any] = dict.fromkeys(("slots", "counts", "traces"))
        task.host = SimpleNamespace(  # type: ignore[assignment]
            name="h", worker="h.1", intake=intake, runner=runner, abilities=self, files=files, **without
        )
        set_current_job(self.job)
        request = JobRequest(spec=SandboxSpec(image="x", **spec))
        return task.run(JobMessage("job", request=request, soft_seconds=1.0, hard_seconds=2.0))

    def _settle(self, claim: Claim, how: Settlement) -> bool:
        assert claim.claim_id == "c"
        self.settled.append(how)
        return self._is_ours

    def _execute(self, _: object, *, cancel: object, hooks: Any, transfer: Any) -> Any:
        assert cancel is self.job.cancellation
        if isinstance(self._ending, Exception):
            raise self._ending
        assert transfer() is NO_TRANSFER
        hooks.start()
        if self._ending is ErrorCode.WORKER_LOST:
            self.job.cancellation.cancel(ErrorCode.WORKER_LOST, "the worker stops")
        verdict = SimpleNamespace(code=self._ending, is_crash=False)
        return SimpleNamespace(
            verdict=verdict, to_outcome=lambda **facts: Outcome.of(self._ending, exit_code=3, **_known(facts))
        )


def _known(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "queued"}


@pytest.fixture(autouse=True)
def _no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = SimpleNamespace(shortened=lambda *_: None)
    monkeypatch.setattr(JobRun, "_admit", lambda *_: limits)


def test_a_program_that_ran_to_its_own_end_is_a_success_that_shows_no_output() -> None:
    worker = Worker(ErrorCode.EXIT_NONZERO)
    assert repr(worker.run()) == "EXIT_NONZERO exit 3"
    (settled,) = worker.settled
    assert isinstance(settled, Finish)
    assert (settled.outcome.code, settled.dead_letter_reason) == (ErrorCode.EXIT_NONZERO, "")
    assert ExitNonZero.error_code is settled.outcome.code


def test_a_refused_job_raises_its_code_and_its_faults_are_settled_with_it() -> None:
    faults = [{"field": "image", "message": "image: there is none"}]
    worker = Worker(ImageNotFound.of("no such image", errors=faults))
    with pytest.raises(ImageNotFound) as raised:
        worker.run()
    assert raised.value.outcome is None, "Celery gets no output"
    (settled,) = worker.settled
    assert isinstance(settled, Finish)
    assert (settled.outcome.message, settled.faults) == ("no such image", faults)


def test_an_image_that_another_host_has_puts_the_job_back() -> None:
    worker = Worker(ImageNotFound.of("no such image"), has_other_host=True)
    with pytest.raises(Requeued):
        worker.run()
    (settled,) = worker.settled
    assert isinstance(settled, PutBack)
    assert settled.avoid_host == "h"


def test_trouble_of_ours_is_tried_again_until_no_attempt_is_left() -> None:
    worker = Worker(SandboxCreationFailed.of("no cgroup"))
    with pytest.raises(Requeued):
        worker.run()
    assert worker.settled == [Retry(ErrorCode.SANDBOX_CREATION_FAILED, 1.0, "h")]
    worker = Worker(SandboxCreationFailed.of("no cgroup"), max_attempts=1)
    with pytest.raises(SandboxCreationFailed):
        worker.run(max_attempts=1)
    (settled,) = worker.settled
    assert isinstance(settled, Finish)
    assert settled.dead_letter_reason == "SANDBOX_CREATION_FAILED after 1 of 1 attempt: no cgroup"


def test_a_job_that_a_stop_ends_goes_back_unless_it_may_not_start_again() -> None:
    worker = Worker(ErrorCode.WORKER_LOST)
    with pytest.raises(Requeued):
        worker.run()
    assert worker.settled == [Release()]
    worker = Worker(WorkerLost.of("the worker stops"))
    worker.job.cancellation.cancel(ErrorCode.WORKER_LOST, "the worker stops")
    with pytest.raises(Requeued):
        worker.run()
    assert worker.settled == [GiveBack()]
    worker = Worker(ErrorCode.WORKER_LOST, max_attempts=1)
    with pytest.raises(WorkerLost, match="max_attempts=1 allows one start"):
        worker.run(max_attempts=1)
    (settled,) = worker.settled
    assert isinstance(settled, Finish)
    assert settled.is_drained
    assert [attempt.charged for attempt in settled.outcome.attempts] == [False]


def test_a_fenced_run_leaves_neither_a_result_nor_a_final_event() -> None:
    worker = Worker(ErrorCode.OK, is_ours=False)
    with pytest.raises(Fenced):
        worker.run()
    worker = Worker(ErrorCode.OK)
    worker.claim = None  # type: ignore[assignment]
    with pytest.raises(Fenced):
        worker.run()
    assert worker.settled == []


def test_celerys_backend_stores_nothing() -> None:
    backend = ClaimsBackend.__new__(ClaimsBackend)  # without a client: any call to Redis would fail
    assert backend.store_result("job", "result", "SUCCESS", request=None) == "result"
