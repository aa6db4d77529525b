"""A claim tells its job's attempts."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Attempt, Outcome
from sandfleet_config.scripts import read_script
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.script_calls import PACKAGE
from sandfleet_worker.delivery.settlement import FailedAttempt, Finish

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


def test_what_ends_without_an_outcome_is_tried_again_and_keeps_its_attempts_at_its_end() -> None:
    attempt = Attempt(host="a", worker="a.1", started=REDIS_TIME)
    calls: list[tuple[Any, ...]] = []

    def call(*, keys: list[Any], args: list[Any]) -> int:
        assert not keys
        calls.append(tuple(args))
        return 1

    client: Any = SimpleNamespace(register_script=lambda _: call)
    ledger = Ledger(client, Identity("a", "a.1", "a:1:x"), 60)
    failed = FailedAttempt.of(ValueError("no such thing"))
    claim = Claim("c", "j", Flag.START, b"m", attempts=(attempt,))

    assert ledger.settle(claim, failed)
    assert calls.pop()[4:6] == ("retry", "INTERNAL")
    assert ledger.settle(replace(claim, max_attempts=1), failed)

    ended = next(args for args in calls if args[2:5] == ("c", "j", "INTERNAL"))
    outcome = Outcome.read(json.loads(ended[5])["result"]["exc_message"][2])
    assert [attempt.code for attempt in outcome.attempts] == [ErrorCode.INTERNAL]
    assert (ended[7], ended[9]) == (failed.message, b"m"), "it is a dead letter"


def test_the_last_attempt_of_a_drained_job_is_ended_before_the_job_is() -> None:
    names: dict[str, str] = {}
    calls: list[str] = []

    def register(text: str) -> Any:
        def call(**_: object) -> int:
            calls.append(names[text])
            return 1

        return call

    client: Any = SimpleNamespace(register_script=register)
    names |= {read_script("drained", PACKAGE): "drained", read_script("finish"): "finish"}
    ledger = Ledger(client, Identity("a", "a.1", "a:1:x"), 60)

    assert ledger.settle(
        Claim("c", "j", Flag.START, b""), Finish(Outcome.of(ErrorCode.WORKER_LOST, "j"), is_drained=True)
    )
    assert calls == ["drained", "finish"]
