"""Redis corrects Flower's picture of the jobs, but not before a late event could have come."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from flower.events import EventsState
from sandfleet_config.bounds import MAX_LABELS
from sandfleet_config.wire import JobRequest, new_spec
from sandfleet_worker.celery_worker.events import MAX_LABEL_CHARS, describe_received
from sandfleet_worker.celery_worker.flower.jobs import JobTask
from sandfleet_worker.celery_worker.flower.truth import Knowledge, Record, Truth, read_record
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.read_message import JobMessage

if TYPE_CHECKING:
    from collections.abc import Callable

JOB, HOST = "job-1", "w.1@host"
LIVE = frozenset({"host:1:abc"})


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(EventsState, "Task", JobTask)
    return EventsState(max_tasks_in_memory=10)


@pytest.fixture
def send(state: Any) -> Callable[..., None]:
    times = itertools.count(1000.0)

    def send_event(type_: str, **fields: Any) -> None:
        now = next(times)
        state.event(
            {
                "type": type_,
                "uuid": JOB,
                "hostname": HOST,
                "timestamp": now,
                "local_received": now,
                "clock": 1,
                **fields,
            }
        )

    return send_event


def describe(attempts: int, labels: dict[str, str] | None = None) -> dict[str, Any]:
    spec = new_spec({"image": "busybox", "command": ["true"], "labels": labels or {}})
    job_message = JobMessage(JOB, spec.to_line(), request=JobRequest(spec=spec, batch="nightly"))
    claim = Claim("c", JOB, Flag.START, b"", queue="q", attempts=(None,) * attempts)  # type: ignore[arg-type]  # counted only
    return describe_received(job_message, claim)


def tell(truth: Truth, record: Record) -> None:
    truth.correct(Knowledge({JOB: record}, LIVE, frozenset()))


def test_what_no_event_told_is_told_when_it_is_seen_twice(state: Any, send: Callable[..., None]) -> None:
    rows = [
        (Record("ended", "OK"), "SUCCESS", "OK"),
        (Record("ended", "EXIT_NONZERO"), "FAILURE", "EXIT_NONZERO: "),
        (Record("ended", "WORKER_LOST"), "FAILURE", "WORKER_LOST: "),
        (Record("queued", last_code="OUT_OF_MEMORY"), "RETRY", "OUT_OF_MEMORY: "),
        (Record("queued"), "RETRY", "WORKER_LOST: "),
        (Record("running", owner="host:9:dead"), "RETRY", "WORKER_LOST: "),
        (Record(""), "FORGOTTEN", "the job ended so long ago"),
    ]
    wrong = []
    for record, expected, text in rows:
        state.clear(ready=False)
        send("task-received", **describe(1))
        send("task-started")
        truth = Truth(state, {}, 300)
        assert truth.find_unfinished() == [JOB]
        tell(truth, record)
        first = state.tasks[JOB].state
        tell(truth, record)
        task = state.tasks[JOB]
        if (first, task.state) != ("STARTED", expected) or not task.result.startswith(text):
            wrong.append((record, first, task.state, task.result))
    assert wrong == []


def test_what_is_true_or_was_only_late_is_left_alone(state: Any, send: Callable[..., None]) -> None:
    truth = Truth(state, {}, 300)
    send("task-received", **describe(1))
    send("task-started")
    for _ in range(3):
        tell(truth, Record("running", owner="host:1:abc"))
    assert state.tasks[JOB].state == "STARTED"

    tell(truth, Record("ended", "OK"))
    tell(truth, Record("running", owner="host:1:abc"))
    tell(truth, Record("ended", "OK"))
    assert state.tasks[JOB].state == "STARTED"  # never twice in a row

    send("task-succeeded", result="OK", runtime=0.1)
    tell(truth, Record("ended", "OK"))
    assert state.counter[HOST]["task-succeeded"] == 1
    assert truth.find_unfinished() == []


def test_a_correction_is_no_sign_of_life(state: Any, send: Callable[..., None]) -> None:
    send("task-received", **describe(1))
    state.event({"type": "worker-offline", "hostname": HOST, "timestamp": 1.0, "local_received": 1.0})
    state.event(
        {"type": "worker-heartbeat", "hostname": HOST, "timestamp": 1.0, "local_received": 1.0, "freq": 2, "active": 3}
    )
    inspected: dict[str, dict[str, Any]] = {HOST: {"active": [{"id": JOB}], "stats": {}}}
    truth = Truth(state, inspected, 300)
    for _ in range(2):
        truth.clear_dead_workers()
        tell(truth, Record("running", owner="host:9:dead"))

    worker = state.workers[HOST]
    assert (worker.alive, worker.active, inspected[HOST]) == (False, 0, {"active": [], "stats": {}})
    assert state.counter[HOST]["worker-offline"] == 2  # the test's own, and one


def test_the_next_attempt_takes_the_last_ones_end_back(state: Any, send: Callable[..., None]) -> None:
    send("task-received", **describe(1))
    send("task-started")
    send("task-retried", result="OUT_OF_MEMORY: x", exception="OUT_OF_MEMORY: x")
    send("task-received", **describe(2))
    task = state.tasks[JOB]
    assert (task.state, task.result, task.attempt) == ("RECEIVED", None, 2)

    # Without an event between the two attempts, as after the death of a worker.
    send("task-started")
    send("task-received", **describe(3))
    task = state.tasks[JOB]
    assert (task.attempt, task.as_dict()["attempt"]) == (3, 3)


def test_labels_in_an_event_are_bounded() -> None:
    labels = {f"label{number:02}": "x" * 250 for number in range(MAX_LABELS)}
    shown = describe(1, labels)["kwargs"]
    assert len(shown) < MAX_LABEL_CHARS + 500
    assert "'labels left out': '29'" in shown


def test_a_damaged_record_keeps_no_other_from_being_read() -> None:
    for attempts in (b"{", b"[1]", b"\xff", b'[{"code": "NEW"}]'):
        assert read_record(b"queued", None, b"\xff", attempts) == Record("queued", "", "\ufffd", "")
    assert read_record(None, None, None, None) == Record()


def test_what_is_searched_is_parsed_once_and_garbage_is_left_alone(state: Any, send: Callable[..., None]) -> None:
    rows = [
        ("{'batch': 'b'}", {"batch": "b"}),
        ("", ""),
        ("[1]", "[1]"),
        ("{'batch': __import__('os')}", "{'batch': __import__('os')}"),
        ("(" * 10_000, "(" * 10_000),
    ]
    found = []
    for text, _ in rows:
        state.clear(ready=False)
        send("task-received", name="sandfleet.run", kwargs=text)
        found.append((text, state.tasks[JOB].kwargs))
    assert found == rows
