"""Every reader treats an outcome with a code of a newer release by its category."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from sandfleet import ErrorCode, Fleet, Outcome, SandboxSpec
from sandfleet.cli import main
from sandfleet.cli.exits import exit_code
from sandfleet_config.codes import Category
from sandfleet_config.errors import (
    ControlError,
    HostError,
    LimitError,
    ProgramError,
    RequestError,
    SandboxError,
    new_error,
)
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_config.scripts import DEAD_TTL_SECONDS, read_script
from sandfleet_worker.delivery.claim import parse_attempts
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger

NEW = "SOMETHING_NEW"
ATTEMPT = {"host": "h", "worker": "h.1", "started": 1_700_000_000_000, "ended": 1_700_000_001_000}


def forge(
    fleet: Fleet,
    client: Any,
    category: str,
    *,
    retryable: bool = True,
    batch: str | None = None,
    reason: str = "",
    **fields: object,
) -> str:
    """Submit a job and end it as a newer worker does, with fields that this one does not know."""
    job_id = fleet.submit(SandboxSpec(image="x"), batch=batch).id
    outcome = {
        "job_id": job_id,
        "batch": batch,
        "code": NEW,
        "category": category,
        "retryable": retryable,
        "message": "what only the newer release knows",
        "stdout": {"data": "so far", "encoding": "utf-8", "total_bytes": 6, "truncated": False, "new": 1},
        "attempts": [{**ATTEMPT, "code": "ANOTHER_NEW", "charged": True}, {**ATTEMPT, "code": NEW}],
        "a_new_field": {"of": "any form"},
        **fields,
    }
    failure = {"exc_type": "SomethingNew", "exc_module": "sandfleet_config.errors"}
    record = (
        {"status": "SUCCESS", "result": outcome}
        if category == "ok"
        else {"status": "FAILURE", "result": {**failure, "exc_message": [NEW, outcome["message"], outcome]}}
    )
    text = json.dumps({**record, "traceback": None, "children": [], "date_done": None, "task_id": job_id})
    finish = (KEY_PREFIX, "host:one:one", f"claim-{job_id}", job_id, NEW, text, 3600, reason, DEAD_TTL_SECONDS, "")
    ledger = Ledger(client, Identity("host", "one", "host:one:one"), 3600)
    ledger.register(600)
    claim, _ = ledger.claim(f"claim-{job_id}", [DEFAULT_QUEUE])
    assert claim is not None
    assert claim.job_id == job_id
    assert client.register_script(read_script("finish"))(args=finish) == 1
    return job_id


CATEGORIES: dict[str, tuple[Category, type[SandboxError], int]] = {
    "program": (Category.PROGRAM, ProgramError, 125),
    "limit": (Category.LIMIT, LimitError, 137),
    "request": (Category.REQUEST, RequestError, 125),
    "control": (Category.CONTROL, ControlError, 125),
    "host": (Category.HOST, HostError, 125),
    "weather": (Category.HOST, HostError, 125),  # a category that is new itself: nobody here is to blame for it
}


def test_an_unknown_code_keeps_its_name_and_counts_as_its_category(
    fleet: Fleet, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (category, error_class, exit_status) in CATEGORIES.items():
        for retryable in (True, False):
            job_id = forge(fleet, client, name, retryable=retryable)
            outcome = fleet.job(job_id).outcome(0)

            assert outcome.code.value == str(outcome.code) == NEW, name
            assert isinstance(outcome.code, ErrorCode)
            assert not outcome.code.is_known
            assert (outcome.code.category, outcome.category) == (category, category), name
            assert (outcome.code.is_retryable, outcome.retryable) == (retryable, retryable)
            assert outcome.message == "what only the newer release knows"
            assert outcome.stdout.text == "so far"
            assert [str(attempt.code) for attempt in outcome.attempts] == ["ANOTHER_NEW", NEW]
            assert not outcome.is_ok
            assert outcome.to_summary() == f"{NEW}: {outcome.message}"

            with pytest.raises(error_class) as raised:
                fleet.job(job_id).result(0)
            assert type(raised.value) is error_class, "no class of another code"
            assert raised.value.code is outcome.code
            assert raised.value.retryable is retryable
            assert str(raised.value) == f"{NEW}: {outcome.message}"
            assert raised.value.outcome == outcome

            assert exit_code(outcome) == exit_status, name
            assert main(["show", job_id]) == 0
            assert f"{NEW}: what only" in capsys.readouterr().out
            assert main(["wait", job_id]) == 1
            printed = capsys.readouterr()
            assert f"{NEW}: what only" in printed.out
            assert category.value in printed.err
            for twin in (copy.deepcopy(outcome), pickle.loads(pickle.dumps(outcome))):  # noqa: S301  our own bytes
                assert (twin, twin.code) == (outcome, outcome.code)
            assert Outcome.read(outcome.to_json()) == outcome


def test_an_unknown_code_of_category_ok_is_a_result(fleet: Fleet, client: Any) -> None:
    job_id = forge(fleet, client, "ok", retryable=False, exit_code=0)
    outcome = fleet.job(job_id).outcome(0)

    assert (outcome.code.value, outcome.is_ok, outcome.code.is_own_end, exit_code(outcome)) == (NEW, True, True, 0)
    assert new_error(outcome) is None
    assert fleet.job(job_id).result(0).stdout == "so far"


def test_a_batch_with_unknown_codes_is_read_to_its_end(fleet: Fleet, client: Any) -> None:
    jobs = [forge(fleet, client, name, batch="mixed") for name in ("host", "limit")]
    assert [outcome.job_id for outcome in fleet.batch("mixed").outcomes()] == jobs
    assert {outcome.job_id for outcome in fleet.batch("mixed").as_completed(timeout=5)} == set(jobs)
    assert {outcome.code.category for outcome in fleet.as_completed(jobs, timeout=5)} == {Category.HOST, Category.LIMIT}


def test_a_text_that_cannot_be_a_code_is_damage(fleet: Fleet, client: Any) -> None:
    """It may drive a terminal, or fill a table of metrics."""
    for code in ("\x1b[31mRED", "lower", "", "X" * 65, "A B", 7, None):
        outcome = fleet.job(forge(fleet, client, "limit", code=code)).outcome(0)
        # The exception's own first item still names a code.
        assert outcome.code in {NEW, "INTERNAL"}
        assert outcome.code.value.isidentifier()


def test_attempts_with_unknown_codes_count_for_workers_and_producers(fleet: Fleet, client: Any) -> None:
    job = fleet.submit(SandboxSpec(image="x"))
    attempts = [{**ATTEMPT, "code": NEW, "charged": True, "boot": "1"}, {**ATTEMPT, "code": "WORKER_LOST"}]
    client.hset(job_key(job.id), "attempts", json.dumps(attempts))

    ledger = Ledger(client, Identity("host", "one", "host:one:one"), 3600)
    ledger.register(600)
    claim, _ = ledger.claim("claim", [DEFAULT_QUEUE])
    assert claim is not None
    assert [str(attempt.code) for attempt in claim.attempts] == [NEW, "WORKER_LOST", "None"]
    assert claim.is_last_attempt
    assert parse_attempts(b'[{"host": 7}]') == ()
    assert ledger.finish(claim, Outcome.of(ErrorCode.CANCELLED, job.id, attempts=claim.attempts))
    assert [str(attempt.code) for attempt in job.outcome(0).attempts] == [NEW, "WORKER_LOST", "None"]


def test_a_dead_letter_with_an_unknown_code_names_it(
    fleet: Fleet, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(fleet, client, "host", reason="no attempt is left")
    (letter,) = fleet.dead.list()
    assert letter.code is not None
    assert letter.code.value == NEW
    assert [str(attempt.code) for attempt in letter.attempts] == [NEW]
    assert main(["dead", "list"]) == 0
    assert NEW in capsys.readouterr().out
