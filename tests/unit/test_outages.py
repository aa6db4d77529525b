"""Errors that count as an outage of Redis, and the back-off until it ends."""

from __future__ import annotations

import errno
import threading
import time

import pytest
from redis import exceptions
from sandfleet_worker.delivery import outages
from sandfleet_worker.delivery.outages import NotAnswered, call_until_answered, can_pass, is_outage
from sandfleet_worker.system.supervised_thread import Backoff

OUTAGES = [
    exceptions.ConnectionError("gone"),
    exceptions.TimeoutError("late"),
    exceptions.BusyLoadingError("loading"),
    exceptions.AuthenticationError("WRONGPASS"),
    exceptions.OutOfMemoryError("command not allowed"),
    exceptions.ReadOnlyError("You can't write against a read only replica."),
    exceptions.NoPermissionError("this user has no permissions"),
    exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    exceptions.ResponseError("BUSY Redis is busy running a script"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
]
REFUSALS = [
    exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    exceptions.ResponseError("user_script:7: attempt to index a nil value"),
]


def test_an_outage_is_what_ends_by_itself_or_by_an_operator() -> None:
    assert [error for error in OUTAGES if not (is_outage(error) and can_pass(error))] == []
    assert [error for error in REFUSALS if is_outage(error) or not can_pass(error)] == []
    for other in (KeyError("x"), OSError(errno.EMFILE, "x"), ValueError("x")):
        assert not is_outage(other)
        assert not can_pass(other)


def call(errors: list[Exception], given_up: threading.Event | None = None) -> str:
    def act() -> str:
        if errors:
            raise errors.pop(0)
        return "heard"

    event = given_up or threading.Event()
    return call_until_answered(act, Backoff("settle", 0.001, 0.01), event.wait)


def test_an_outage_is_waited_for_and_a_refusal_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "REFUSAL_TIMEOUT_SECONDS", 0.05)
    began = time.monotonic()
    assert call([OUTAGES[0]] * 20) == "heard"
    assert time.monotonic() - began > 0.05, "it took longer than a refusal may"
    assert call([OUTAGES[0]] * 20 + [REFUSALS[0]] * 3) == "heard", "the outage before it does not count"
    with pytest.raises(NotAnswered, match="WRONGTYPE"):
        call([REFUSALS[0]] * 10_000)
    with pytest.raises(KeyError):
        call([KeyError("x")])


def test_nobody_waits_who_has_given_up() -> None:
    given_up = threading.Event()
    given_up.set()
    assert call([], given_up) == "heard", "one try is made in any case"
    with pytest.raises(NotAnswered, match="gone"):
        call([OUTAGES[0]], given_up)
