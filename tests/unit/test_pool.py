"""No job stays claimed without an end because Celery's own code failed around it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_worker.celery_worker.pool import SandboxPool
from sandfleet_worker.delivery.settlement import WorkerStops
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ARGS = ("sandfleet.run", "job", {"properties": {"delivery_tag": "claim"}}, b"", "", "")


@pytest.fixture
def pool() -> Iterator[SandboxPool]:
    pool = SandboxPool(limit=1)
    yield pool
    pool.on_stop()


def fail(*_: object) -> None:
    raise ConnectionError("no broker")


def test_a_job_is_told_as_left_whatever_fails_around_it(pool: SandboxPool) -> None:
    nothing: Any = lambda *_: None  # noqa: E731
    for failing in ("accept_callback", "target", "callback", "error_callback", ""):
        left: list[tuple[str, Exception | None]] = []
        pool.on_done = lambda claim_id, error: left.append((claim_id, error))  # noqa: B023
        functions = dict.fromkeys(("accept_callback", "callback", "error_callback"), nothing) | {"target": nothing}
        if failing:
            functions[failing] = fail
        if failing == "error_callback":
            functions["target"] = fail

        pool.on_apply(functions.pop("target"), ARGS, {}, correlation_id="job", **functions)

        wait_until(lambda: left, 5, f"{failing}: it is told")  # noqa: B023
        ((claim_id, error),) = left
        assert claim_id == "claim"
        assert isinstance(error, ConnectionError) is bool(failing), failing
        assert pool._get_info()["jobs"] == 0


def test_a_pool_that_was_shut_says_that_the_worker_stops(pool: SandboxPool) -> None:
    pool.on_stop()
    with pytest.raises(WorkerStops):
        pool.on_apply(fail, ARGS, {}, callback=fail, error_callback=fail, accept_callback=fail)
    assert pool._get_info()["jobs"] == 0


def test_a_job_for_which_no_thread_is_left_is_forgotten_and_told_to_the_caller(
    pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        pool.on_apply(fail, ARGS, {}, callback=fail, error_callback=fail, accept_callback=fail)
    monkeypatch.undo()

    assert pool._get_info()["jobs"] == 0
