"""Outages of Redis: the errors that count as one, and how each part of the worker waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import redis
from redis import exceptions
from sandfleet_config.redis_client import is_forbidden

from sandfleet_worker.system.supervised_thread import Backoff, is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable

REDIS_ERRORS = (redis.RedisError, OSError)
"""Errors that a call to Redis may raise."""
REFUSAL_TIMEOUT_SECONDS = 30.0
"""How long to repeat a call that Redis answers with another error.

Such are a key of a wrong type, and a script that fails.
"""
_PASSING_ANSWERS = (
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.NoScriptError,
)
_PASSING_WORDS = frozenset(
    {"MISCONF", "NOREPLICAS", "BUSY", "LOADING", "OOM", "READONLY", "MASTERDOWN", "TRYAGAIN", "UNKILLABLE"}
)
T = TypeVar("T")


def is_outage(error: BaseException) -> bool:
    """Whether Redis is away, full, read-only or still loading.

    Then the same call succeeds later, however long that takes.
    """
    if isinstance(error, exceptions.ResponseError):
        is_passing = isinstance(error, _PASSING_ANSWERS) or is_forbidden(error)  # until somebody changes the rules
        return is_passing or str(error).split(" ", 1)[0] in _PASSING_WORDS
    return isinstance(error, redis.RedisError | ConnectionError | TimeoutError)


def can_pass(error: BaseException) -> bool:
    """Whether a thread that calls Redis tries again after `error`.

    It does after an outage, and after an error in the answer. An error such as a key of a wrong
    type must not end a worker: the next worker would meet it, too.
    """
    return isinstance(error, redis.RedisError) or is_outage(error)


class NotAnswered(Exception):
    """A call to Redis had no answer in time, or its answer stays an error.

    In time is before the wait was given up. The cause says which it was.
    """


def call_until_answered(act: Callable[[], T], backoff: Backoff, pause: Callable[[float], bool]) -> T:
    """Call `act` until Redis answers, through an outage of any length, and return the answer.

    `pause` waits for so many seconds and returns True where the wait is given up.

    Raises:
        NotAnswered: `pause` gave up, or Redis answers with an error that is no outage for
        `REFUSAL_TIMEOUT_SECONDS`.
    """
    refused_since: float | None = None
    while True:
        try:
            answer = act()
        except REDIS_ERRORS as error:
            now = time.monotonic()
            if is_outage(error) or is_resource_error(error):
                refused_since = None
            elif refused_since is None:
                refused_since = now
            is_hopeless = refused_since is not None and now - refused_since > REFUSAL_TIMEOUT_SECONDS
            if is_hopeless or pause(backoff.note_failure(error)):
                raise NotAnswered(f"{type(error).__name__}: {error}") from error
        else:
            backoff.note_success()
            return answer
