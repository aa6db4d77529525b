"""What a claim says of its job's attempts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Attempt
from sandfleet_worker.celery_worker.backend import _read_outcome
from sandfleet_worker.delivery.claim import Claim, Flag

REDIS_TIME = datetime(2001, 2, 3, tzinfo=UTC)


def test_an_attempt_ends_by_the_clock_it_started_by() -> None:
    first = Attempt(host="a", worker="a.1", code=ErrorCode.WORKER_LOST, started=REDIS_TIME, ended=REDIS_TIME)
    second = Attempt(host="b", worker="b.1", started=REDIS_TIME + timedelta(days=1))
    claim = Claim("c", "j", Flag.START, b"", attempts=(first, second))

    before, last = claim.end_attempts(ErrorCode.OK)

    assert before is first
    assert last.code is ErrorCode.OK
    assert last.ended is not None
    assert timedelta(0) <= last.ended - second.started < timedelta(seconds=60), "whatever this host's clock says"


def test_what_ends_without_an_outcome_keeps_its_attempts_and_says_what_it_was(caplog: pytest.LogCaptureFixture) -> None:
    claim = Claim("c", "j", Flag.START, b"", attempts=(Attempt(host="a", worker="a.1", started=REDIS_TIME),))

    outcome = _read_outcome(claim, ValueError("no such thing"))

    assert (outcome.code, outcome.job_id) == (ErrorCode.INTERNAL, "j")
    assert [attempt.code for attempt in outcome.attempts] == [ErrorCode.INTERNAL]
    assert "no such thing" in caplog.text
