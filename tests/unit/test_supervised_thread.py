"""A thread recovers from what can pass; everything else is told, so that the worker ends."""

from __future__ import annotations

import errno
import itertools
import threading
from typing import TYPE_CHECKING

import pytest
from sandfleet_worker.system.supervised_thread import Backoff, SupervisedThread, is_resource_error
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

PASSING = [OSError(number, "x") for number in (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EROFS, errno.ENOMEM)]
PASSING += [MemoryError(), RuntimeError("can't start new thread")]  # type: ignore[list-item]


class Away(Exception):
    """The service is away."""


def run(errors: list[Exception], timeout_seconds: float = 60.0) -> tuple[int, list[str]]:
    """Run a thread whose step raises each of `errors` once and then succeeds.

    Return its calls, and what it told.
    """
    numbers, told, done = itertools.count(), list[str](), threading.Event()
    calls = 0

    def step() -> float:
        nonlocal calls
        calls += 1
        number = next(numbers)
        if number < len(errors):
            raise errors[number]
        done.set()
        return 60.0

    def fail(why: str) -> None:
        told.append(why)
        done.set()

    thread = SupervisedThread(
        "work", step, fail,
        can_pass=lambda error: isinstance(error, Away), timeout_seconds=timeout_seconds, backoff=Backoff("work", 0.001, 0.002),
    )  # fmt: skip
    thread.start()
    assert done.wait(10)
    thread.stop()
    assert not thread.is_alive
    return calls, told


def test_a_thread_goes_on_after_what_can_pass_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for error in [*PASSING, Away("gone")]:
        caplog.clear()
        assert run([error] * 5) == (6, []), error
        actions = [getattr(record, "action", "") for record in caplog.records]
        assert actions == ["work_interrupted", "work_resumed"], error


def test_a_thread_that_cannot_go_on_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    for error in (KeyError("secret"), OSError(errno.EBADF, "x"), RuntimeError("x")):
        calls, (told,) = run([error])
        assert calls == 1
        assert told == f"the thread work has failed with {type(error).__name__}"
    assert "thread_failed" in {getattr(record, "action", "") for record in caplog.records}


def test_a_resource_that_is_missing_too_long_ends_the_worker_and_an_outage_does_not() -> None:
    calls, told = run([PASSING[0]] * 1000, timeout_seconds=0.02)
    assert 1 < calls < 100
    assert told == ["the thread work has failed with OSError"]
    assert run([Away()] * 100, timeout_seconds=0.02) == (101, [])


def test_a_system_exit_of_a_step_is_told_too() -> None:
    told: list[str] = []

    def leave() -> None:
        raise SystemExit

    thread = SupervisedThread("work", leave, told.append)
    thread.start()
    wait_until(lambda: not thread.is_alive, 10, "the thread has ended")
    assert told == ["the thread work has failed with SystemExit"]


@pytest.mark.parametrize("stop", [SupervisedThread.stop, SupervisedThread.tell_to_stop])
def test_a_thread_may_stop_itself_and_a_pause_ends_with_stop(stop: Callable[[SupervisedThread], None]) -> None:
    told: list[str] = []
    itself = SupervisedThread("itself", lambda: stop(itself), told.append)
    pausing = SupervisedThread("pausing", lambda: 3600.0, told.append)
    for thread in (itself, pausing):
        thread.start()
    pausing.stop()
    itself.stop()
    assert not itself.is_alive
    assert not pausing.is_alive
    assert told == []


def test_other_os_errors_are_no_resource_errors() -> None:
    assert not is_resource_error(OSError(errno.EPERM, "x"))
    assert not is_resource_error(ConnectionRefusedError(errno.ECONNREFUSED, "x"))


def test_a_resource_that_is_missing_for_a_moment_after_a_long_outage_can_pass() -> None:
    calls, told = run([*[Away()] * 40, PASSING[0]], timeout_seconds=0.02)
    assert (calls, told) == (42, [])
    _, told = run([*[Away()] * 40, *[PASSING[0]] * 1000], timeout_seconds=0.02)
    assert told == ["the thread work has failed with OSError"]
