"""Acts of operators: counted first, told in the audit, refused where they could be a mistake."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from claims import claim_next
from sandfleet import Category, ErrorCode, Fleet, Outcome, SandboxSpec
from sandfleet.actions import ActionRefused, Actor, Operator, Selection
from sandfleet.channel.fleet_state import MAX_NOTE
from sandfleet.errors import FleetUnavailable
from sandfleet.overview.job_filter import JobFilter
from sandfleet_config.queues import CORDONS, DEFAULT_QUEUE, PAUSED, job_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_worker.delivery.ledger import Ledger

ANN = Actor("ann", "operator", "cli")
TRUE = SandboxSpec(image="x", command=["true"])
ALL = JobFilter()


@pytest.fixture
def ann(fleet: Fleet, client: Any) -> Iterator[Operator]:
    yield fleet.operator(ANN)
    client.delete(CORDONS, PAUSED)


def read_audit(fleet: Fleet) -> list[tuple[str, str, int, str]]:
    return [(entry.action, entry.target, entry.count, entry.reason) for entry in fleet.state.read_audit(100)]


def end_next(ledger: Ledger, code: ErrorCode, reason: str = "") -> str:
    claim, _ = claim_next(ledger, f"claim-{time.monotonic_ns()}")
    assert claim is not None
    assert ledger.finish(claim, Outcome.of(code, claim.job_id, attempts=claim.end_attempts(code)), reason=reason)
    return claim.job_id


def test_a_cordon_says_what_runs_there_and_who_wanted_it(fleet: Fleet, ann: Operator, ledger: Ledger) -> None:
    ledger.beat(6, [], '{"state":"up","running":3,"waiting":1}')
    preview = ann.preview_host("host")
    assert (preview.is_known, preview.workers, preview.running, preview.waiting) == (True, 1, 3, 1)

    result = ann.cordon("host", " a sick disk ")

    assert (result.done, result.text) == (1, "host has 1 worker; 3 jobs run there, 1 waits for its start")
    (cordon,) = fleet.state.read_summary().cordons
    assert (cordon.host, cordon.by, cordon.reason, cordon.deadline) == ("host", "ann", "a sick disk", None)
    assert abs(cordon.at - time.time()) < 5
    assert read_audit(fleet) == [("cordon", "host:host", 3, "a sick disk")]
    assert ann.uncordon("host").done == 1
    again = ann.uncordon("host")
    assert (again.done, again.skipped, again.text) == (0, 1, "host was not cordoned")
    assert len(read_audit(fleet)) == 3


def test_operators_act_at_maxmemory_and_the_audit_tells_it(fleet: Fleet, ann: Operator, client: Any) -> None:
    ann.cordon("host-1", "a first mark")
    ann.pause("one", "a first mark")
    client.config_set("maxmemory", 1)
    try:
        ann.cordon("host-2", "a sick disk")
        ann.drain("host-2", "a sick disk", 5)
        ann.pause("two", "it fills Redis")
        ann.uncordon("host-2")
        ann.resume("two")
    finally:
        client.config_set("maxmemory", 0)
    assert [host.host for host in fleet.state.read_summary().cordons] == ["host-1"]
    assert len(read_audit(fleet)) == 7


def test_a_drain_has_a_deadline_by_the_clock_of_redis(fleet: Fleet, ann: Operator) -> None:
    result = ann.drain("host-9", "a new kernel", 1800)
    assert "no live worker is on host-9" in result.text
    deadline = fleet.state.read_summary().cordons[0].deadline
    assert deadline is not None
    assert 1790 < deadline - time.time() < 1810
    ann.cordon("host-9", "not yet")
    assert fleet.state.read_summary().cordons[0].deadline is None


def test_a_pause_says_how_many_jobs_would_expire_meanwhile(fleet: Fleet, ann: Operator, client: Any) -> None:
    jobs = fleet.submit_many([TRUE] * 3)
    for job, seconds in zip(jobs, (60, 7200, 1_000_000), strict=True):
        client.hset(job_key(job.id), "expires", round((time.time() + seconds) * 1000))

    preview = ann.preview_queue(DEFAULT_QUEUE)
    result = ann.pause(DEFAULT_QUEUE, "a bad release")

    assert (preview.waiting, preview.expire_in_hour, preview.expire_in_day) == (3, 1, 2)
    assert "1 would expire within an hour of pause, 2 within a day" in result.text
    assert read_audit(fleet) == [("pause", f"queue:{DEFAULT_QUEUE}", 3, "a bad release")]
    assert ann.preview_queue(DEFAULT_QUEUE).pause is not None
    assert ann.resume(DEFAULT_QUEUE).done == 1
    assert ann.resume(DEFAULT_QUEUE).skipped == 1


REFUSED: dict[str, tuple[Callable[[Operator], object], str]] = {
    "no reason": (lambda ann: ann.cordon("host", "  "), "the reason is missing"),
    "no note": (lambda ann: ann.pause("q", ""), "the note is missing"),
    "a long reason": (lambda ann: ann.drain("host", "x" * (MAX_NOTE + 1), 60), "has 501 characters"),
    "two lines": (lambda ann: ann.cordon("host", "a\nb"), "one line"),
    "an escape sequence": (lambda ann: ann.cordon("host", "a\x1b[2J"), "control characters"),
    "no host": (lambda ann: ann.cordon("a b", "why"), "no name of a host"),
    "no host at all": (lambda ann: ann.uncordon(""), "no name of a host"),
    "no queue": (lambda ann: ann.pause("a:b", "why"), "a queue's name is"),
    "a key's name": (lambda ann: ann.pause("owners", "why"), "the name is taken"),
    "a deadline in the past": (lambda ann: ann.drain("host", "why", -1), "deadline"),
    "an endless deadline": (lambda ann: ann.drain("host", "why", float("nan")), "deadline"),
    "no filter": (lambda ann: ann.cancel_jobs(Selection(" ", [])), "an empty filter"),
    "no batch": (lambda ann: ann.cancel_jobs(ann.select_in_batch("", ALL)), "name a batch"),
    "no jobs": (lambda ann: ann.cancel_jobs(ann.select_jobs([])), "an empty filter"),
    "no id": (lambda ann: ann.cancel_jobs(ann.select_jobs(["a b"])), "no id of a job"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_be_a_mistake_is_refused_and_changes_nothing(fleet: Fleet, ann: Operator, case: str) -> None:
    act, why = REFUSED[case]
    with pytest.raises(ActionRefused, match=why):
        act(ann)
    assert read_audit(fleet) == []
    assert fleet.state.read_summary().cordons == ()


def test_a_viewer_cannot_act(fleet: Fleet) -> None:
    with pytest.raises(ActionRefused, match="only operators act"):
        fleet.operator(Actor("eve", "viewer", "web"))


def test_jobs_are_cancelled_by_a_filter_and_each_is_told(
    fleet: Fleet, ann: Operator, ledger: Ledger, client: Any
) -> None:
    specs = [TRUE.model_copy(update={"labels": {"suite": "s7" if at % 2 else "s8"}}) for at in range(6)]
    jobs = fleet.submit_many(specs, batch="nightly")
    end_next(ledger, ErrorCode.OK)  # jobs[0]
    end_next(ledger, ErrorCode.OK)  # jobs[1]
    running, _ = claim_next(ledger, "runs")  # jobs[2]
    wanted = JobFilter.of(labels={"suite": "s7"})
    assert ann.preview_cancel(ann.select_in_batch("nightly", wanted)).count == 3

    result = ann.cancel_jobs(ann.select_in_batch("nightly", wanted), "too slow")

    assert (result.done, result.skipped, result.gone, result.has_more) == (2, 1, 0, False)
    assert result.reasons == {"were cancelled before they started": 2, "have ended": 1}
    assert fleet.state.read_audit(1)[0].result.startswith("2 done, 1 skipped, 0 gone (2 were cancelled")
    assert read_audit(fleet) == [("cancel", "batch:nightly label.suite=s7", 2, "too slow")]
    assert running is not None
    client.delete(job_key(jobs[4].id))
    rest = ann.cancel_jobs(ann.select_jobs([jobs[2].id, jobs[4].id]))
    assert rest.reasons == {"run, and are told to end": 1, "have no record any more": 1}
    assert (rest.done, rest.gone) == (1, 1)
    assert ledger.beat(6, [running])[0] == {jobs[2].id: "the job was cancelled"}


def test_failed_jobs_run_again_once(fleet: Fleet, ann: Operator, ledger: Ledger) -> None:
    fleet.submit_many([TRUE] * 4, batch="b")
    ends = [end_next(ledger, code) for code in (ErrorCode.OK, ErrorCode.TIMEOUT, ErrorCode.TIMEOUT, ErrorCode.SIGNALED)]
    wanted = JobFilter.of(codes=["TIMEOUT"])
    stale = ann.select_in_batch("b", wanted)
    preview = ann.preview_retry(stale)
    assert (preview.count, preview.first) == (2, tuple(ends[1:3]))

    assert ann.retry_jobs(ann.select_in_batch("b", wanted)).done == 2
    assert ann.retry_jobs(ann.select_in_batch("b", wanted)).done == 0, "none matches any more"
    second = ann.retry_jobs(Selection("of an old page", [(job_id, 1) for job_id in ends[1:3]]))
    assert (second.done, second.skipped) == (0, 2), "a second click changes nothing"
    rest = ann.select_in_batch("b", ALL, is_failed=True)
    assert ann.preview_retry(rest).count == 1
    assert ann.retry_jobs(rest).done == 1
    assert ann.retry_jobs(Selection("what ended OK", [(ends[0], 1)])).gone == 1


def test_a_filter_by_host_and_category_reads_the_records(fleet: Fleet, ann: Operator, ledger: Ledger) -> None:
    fleet.submit_many([TRUE] * 2, batch="b")
    first = end_next(ledger, ErrorCode.WORKER_LOST)
    end_next(ledger, ErrorCode.TIMEOUT)
    wanted = JobFilter.of(categories=[Category.HOST], host="host")
    assert ann.preview_retry(ann.select_in_batch("b", wanted, is_failed=True)).first == (first,)
    assert ann.preview_retry(ann.select_in_batch("b", JobFilter.of(host="other"), is_failed=True)).count == 0


def test_one_call_takes_1000_jobs_and_the_next_goes_on(fleet: Fleet, ann: Operator) -> None:
    fleet.submit_many([TRUE] * 1203, batch="large")
    selection = ann.select_in_batch("large", ALL)
    first = ann.cancel_jobs(selection)
    second = ann.cancel_jobs(selection)
    assert (first.done, first.has_more) == (1000, True)
    assert (second.done, second.has_more) == (203, False)
    both = first + second
    assert (both.done, both.has_more, both.reasons.total()) == (1203, False, 1203)
    assert [entry.count for entry in fleet.state.read_audit(10)] == [203, 1000]
    assert fleet.batch("large").codes == {"CANCELLED": 1203}


def test_dead_letters_are_queued_again_or_deleted(fleet: Fleet, ann: Operator, ledger: Ledger) -> None:
    fleet.submit_many([TRUE] * 3, batch="b")
    ends = [end_next(ledger, ErrorCode.WORKER_LOST, "no attempt is left") for _ in range(3)]
    assert ann.preview_dead(ann.select_dead()).count == 3
    assert ann.preview_dead(ann.select_dead("other")).count == 0

    assert ann.requeue_dead(Selection("one", [(ends[0], 1)])).done == 1
    purged = ann.purge_dead(Selection("three", [(job_id, 1) for job_id in ends]), "old")

    assert (purged.done, purged.gone) == (2, 1)
    assert fleet.dead.list() == []
    assert [entry[:3] for entry in read_audit(fleet)] == [("purge dead", "three", 2), ("requeue dead", "one", 1)]


def test_an_act_that_is_cut_short_is_told_too(fleet: Fleet, ann: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = fleet.submit_many([TRUE] * 250, batch="b")
    original, calls = fleet._channel.cancel, list[int]()

    def cancel(job_ids: Any) -> Any:
        calls.append(len(job_ids))
        if len(calls) == 2:
            raise FleetUnavailable("Redis is away")
        return original(job_ids)

    monkeypatch.setattr(fleet._channel, "cancel", cancel)
    with pytest.raises(FleetUnavailable):
        ann.cancel_jobs(ann.select_in_batch("b", ALL))
    (entry,) = fleet.state.read_audit(10)
    assert entry.count == 100
    assert entry.result.startswith("cut short: 100 done")
    assert len(jobs) == 250
