"""The Celery pool: one thread a running job, no Python process.

It hands each job its limits and a way to end it. The threads live as long as the pool. Invariant: a
thread that spawned a runsc outlives it, since the kernel's parent-death signal, by which sandboxes
die with their worker, fires at the death of the spawning *thread*.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from sandfleet_config.codes import ErrorCode
from sandfleet_config.messages import CANCELLED

from sandfleet_worker.delivery.settlement import WorkerStops
from sandfleet_worker.job_handle import JobHandle, set_current_job
from sandfleet_worker.tasks import run_task

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class SandboxPool(BasePool):
    """Runs `limit` jobs at once in threads.

    `SANDFLEET_WAITING_JOBS` more have a thread while they wait for their start.
    """

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._executor = ThreadPoolExecutor(self.limit + _count_waiting_jobs(self.app), thread_name_prefix="job")
        self._numbers = itertools.count(1)
        self._jobs: dict[int, JobHandle] = {}
        self._lock = threading.Lock()
        self._is_shut = False
        self.on_done: Callable[[str, Exception | None], None] = lambda _claim_id, _failure: None
        """Called last in the job's thread.

        Its arguments are the claim's id and the error of Celery's own code, if there was one.
        """

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        callback: Callable[[Any], None],
        error_callback: Callable[[ExceptionInfo], None],
        accept_callback: Callable[[int, float], None],
        soft_timeout: float | None = None,
        timeout: float | None = None,
        correlation_id: str = "",
        **_: Any,
    ) -> None:
        """Queue one job for a thread; Celery's prefetch keeps the queue empty."""
        job = JobHandle(next(self._numbers), correlation_id, _find_claim_id(args), soft_timeout, timeout)
        with self._lock:
            self._jobs[job.number] = job

        def run() -> Exception | None:
            accept_callback(job.number, time.monotonic())
            try:
                result = target(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  the edge: Celery's own tracer failed
                error_callback(ExceptionInfo())
                return error
            callback(result)
            return None

        try:
            self._executor.submit(self._run, job, run)
        except BaseException as error:  # no thread is left, or the pool is shut: whoever called settles the job
            with self._lock:
                del self._jobs[job.number]
            if self._is_shut and isinstance(error, RuntimeError):
                raise WorkerStops from error
            raise

    def _run(self, job: JobHandle, run: Callable[[], Exception | None]) -> None:
        """Call `run` in this thread, then settle what it left unsettled.

        `run` returns the error that it handled.
        """
        set_current_job(job)
        failure: Exception | None = None
        try:
            failure = run()
        except Exception as error:
            failure = error
            extra = {"action": "report_failed", "job_id": job.job_id}
            log.exception("cannot report job %s", job.job_id, extra=extra)
        finally:
            self._leave(job, failure)

    def _leave(self, job: JobHandle, failure: Exception | None) -> None:
        """Forget a job whose thread has done all its work.

        `on_done` settles its claim if it is still held.
        """
        with self._lock:
            del self._jobs[job.number]
        try:
            self.on_done(job.claim_id, failure)
        except Exception:
            extra = {"action": "settle_failed", "job_id": job.job_id}
            log.exception("job %s is left to others", job.job_id, extra=extra)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:  # noqa: ARG002  every signal means the same here
        """Cancel the job with the number `pid`: kill its sandbox, then end it as ``CANCELLED``."""
        with self._lock:
            job = self._jobs.get(pid)
        if job is not None:
            job.cancellation.cancel(ErrorCode.CANCELLED, CANCELLED)

    def cancel(self, job_id: str, message: str = CANCELLED) -> bool:
        """Cancel every run of `job_id` in this pool; return whether there was one."""
        jobs = self._find(job_id)
        for job in jobs:
            job.cancellation.cancel(ErrorCode.CANCELLED, message)
        return bool(jobs)

    def withdraw(self, job_id: str, message: str = "the worker was told to stop at once") -> None:
        """Kill the sandbox of `job_id` and give the job back unrecorded.

        Another worker runs it.
        """
        for job in self._find(job_id):
            job.cancellation.cancel(ErrorCode.WORKER_LOST, message)

    def withdraw_claim(self, claim_id: str, message: str) -> None:
        """Kill the sandbox of one claim; another one of the same job goes on."""
        with self._lock:
            found = [job for job in self._jobs.values() if job.claim_id == claim_id]
        for job in found:
            job.cancellation.cancel(ErrorCode.WORKER_LOST, message)

    def withdraw_all(self, message: str) -> None:
        """Withdraw every job."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancellation.cancel(ErrorCode.WORKER_LOST, message)

    def on_stop(self) -> None:
        """Wait for the threads; the consumer has drained the jobs."""
        self._is_shut = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def on_terminate(self) -> None:
        """Take every running job back and wait until its sandbox is gone (cold shutdown)."""
        self.withdraw_all("the worker was told to stop at once")
        self.on_stop()

    def _find(self, job_id: str) -> list[JobHandle]:
        with self._lock:
            return [job for job in self._jobs.values() if job.job_id == job_id]

    def _get_info(self) -> dict[str, Any]:
        with self._lock:
            return {"implementation": "sandfleet", "max-concurrency": self.limit, "jobs": len(self._jobs)}


def _count_waiting_jobs(app: Any) -> int:
    host = run_task(app).host if app is not None else None
    return host.settings.waiting_jobs if host is not None else 0


def _find_claim_id(args: tuple[Any, ...]) -> str:
    """Return the claim's id from the arguments of Celery's tracer.

    They are task, id, the request as a dict, ...
    """
    for item in args:
        if isinstance(item, dict) and isinstance(item.get("properties"), dict):
            return str(item["properties"].get("delivery_tag", ""))
    return ""
