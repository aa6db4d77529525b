"""Runs: a retry by a person starts the job's next run, once, and keeps the earlier outcome."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from lasting import lasting_keys
from pydantic import SecretStr
from sandfleet import CancelState, ErrorCode, Fleet, JobUnknown, Outcome, SandboxSpec, Settings
from sandfleet.channel.records import RunState
from sandfleet.cli import main
from sandfleet_config.outcome import StreamOutput
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key, result_key, run_key
from sandfleet_worker.delivery import end_calls
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.ledger import Ledger
from waiting import wait_until

SPEC = SandboxSpec(image="x", command=["true"], max_attempts=2)
JOBS = int(os.environ.get("TEST_RETRIED_BATCH", "4000"))
"""In a batch of which a quarter is run again; `make test-retries` takes 100,000."""
LOST = ErrorCode.WORKER_LOST


def claim_next(ledger: Ledger) -> Claim:
    claim, _ = ledger.claim(f"claim-{time.monotonic_ns()}", [DEFAULT_QUEUE])
    assert claim is not None
    return claim


def end(ledger: Ledger, claim: Claim, code: ErrorCode = ErrorCode.OK) -> str:
    """End the claim's run, as a dead letter where it is the host's fault."""
    outcome = Outcome.of(code, claim.job_id, exit_code=0, attempts=claim.end_attempts(code))
    reason = "no attempt is left" if code is LOST else ""
    assert ledger.finish(claim, outcome, reason=reason)
    return claim.job_id


def test_the_next_run_has_an_outcome_and_attempts_of_its_own(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    job = fleet.submit(SPEC, batch="b")
    ledger.retry(claim_next(ledger), LOST)
    end(ledger, claim_next(ledger), LOST)
    first = job.outcome(timeout=5)
    assert (first.run, first.code, len(first.attempts)) == (1, LOST, 2)
    ttl = client.ttl(result_key(job.id))

    assert fleet.dead.requeue(job.id, run=1) == job

    assert not job.is_done
    assert fleet.batch("b").counts == (1, 0)
    assert fleet.batch("b").codes == {}, "the earlier code counts no more"
    assert job.outcome(run=1) == first
    assert ttl - 5 <= client.ttl(run_key(job.id, 1)) <= ttl
    claim = claim_next(ledger)
    assert (claim.run, claim.max_attempts, len(claim.attempts)) == (2, 2, 1), "attempts count within a run"
    assert ledger.retry(claim, LOST)
    claim = claim_next(ledger)
    assert claim.is_last_attempt
    end(ledger, claim)
    second = job.outcome(timeout=5)
    assert (second.run, second.code, len(second.attempts)) == (2, ErrorCode.OK, 2)
    assert job.outcome(run=2, timeout=5) == second
    assert job.outcome(run=1) == first
    assert (fleet.batch("b").counts, fleet.batch("b").codes) == ((1, 1), {"OK": 1})
    for run in (0, 3):
        with pytest.raises(JobUnknown, match=f"run {run} of job"):
            job.outcome(run=run)
    client.delete(run_key(job.id, 1))
    with pytest.raises(JobUnknown, match="forgotten"):
        job.outcome(run=1)
    assert lasting_keys(client, ("owners", "queues")) == []


DIGEST = f"sha256:{'a' * 64}"


def end_with_image(ledger: Ledger, digest: str | None = DIGEST, **fields: Any) -> None:
    """End the next job's run as a dead letter of a program that ran from the image `digest`."""
    claim = claim_next(ledger)
    outcome = Outcome.of(LOST, claim.job_id, image_digest=digest, **fields)
    assert ledger.finish(claim, outcome, reason="no attempt is left")


def test_a_retry_keeps_the_image_digest_unless_told_otherwise(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    printed = StreamOutput.of(f'"image_digest":"sha256:{"b" * 64}","artifacts":['.encode())
    lies: dict[str, Any] = {"labels": {"image_digest": f"sha256:{'c' * 64}", "artifacts": "["}, "stdout": printed}
    job = fleet.submit(SPEC)
    end_with_image(ledger, **lies)
    fleet.dead.requeue(job.id)
    assert ledger.read_pin(job.id) == DIGEST
    end_with_image(ledger, None, **lies)  # its image could not be found this time
    client.delete(result_key(job.id), job_key(job.id))  # a dead letter lives longer
    fleet.dead.requeue(job.id)
    assert ledger.read_pin(job.id) == DIGEST
    end_with_image(ledger)
    client.hdel(f"{KEY_PREFIX}dead:{job.id}", "image_digest")  # as a worker of an older release writes it
    assert main(["dead", "requeue", job.id]) == 0
    assert ledger.read_pin(job.id) == DIGEST
    end_with_image(ledger)
    assert main(["dead", "requeue", "--resolve-images", job.id]) == 0
    assert ledger.read_pin(job.id) == ""
    end_with_image(ledger, None, **lies)
    fleet.dead.requeue(job.id)
    assert ledger.read_pin(job.id) == "", "what a program prints, and labels, are no digest"


def test_a_retry_of_a_batch_looks_its_images_up_for_all_its_jobs(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit_many([SPEC] * 2, batch="b")
    assert ledger.pin_image("b", "x", DIGEST) == DIGEST
    for _ in range(2):
        end_with_image(ledger)
    assert dict(Counter(state for _, state in fleet.dead.requeue_all("b"))) == {RunState.QUEUED: 2}
    assert ledger.pin_image("b", "x") == DIGEST
    for _ in range(2):
        end_with_image(ledger)
    assert main(["dead", "requeue", "--resolve-images", "--batch", "b"]) == 0
    assert ledger.pin_image("b", "x") == ""


def test_a_second_click_does_nothing(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    job = fleet.submit(SPEC)
    end(ledger, claim_next(ledger), LOST)
    seen = fleet.dead.show(job.id).run
    for _ in range(2):
        fleet.dead.requeue(job.id, run=seen)
        assert client.hget(job_key(job.id), "run") == b"2"
    claim = claim_next(ledger)
    fleet.dead.requeue(job.id, run=seen)  # while it runs
    end(ledger, claim, LOST)
    fleet.dead.requeue(job.id, run=seen)  # and when that run has ended
    assert job.outcome(timeout=5).run == 2
    assert fleet.dead.show(job.id).run == 2
    fleet.dead.requeue(job.id)  # as it is now
    assert client.hget(job_key(job.id), "run") == b"3"
    end(ledger, claim_next(ledger))
    assert [job.outcome(run=run, timeout=5).run for run in (1, 2, 3)] == [1, 2, 3]


def test_a_cancel_and_an_expiry_end_the_newest_run(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    cancelled, expired = fleet.submit_many([SPEC.model_copy(update={"queue_ttl": 60.0})] * 2, batch="b")
    for _ in range(2):
        end(ledger, claim_next(ledger), LOST)
    assert dict(fleet.dead.requeue_all("b")) == dict.fromkeys((cancelled.id, expired.id), RunState.QUEUED)
    assert cancelled.cancel().is_ended
    client.hset(job_key(expired.id), "expires", 1)
    assert expired.is_done
    for job, code in ((cancelled, ErrorCode.CANCELLED), (expired, ErrorCode.EXPIRED)):
        assert (job.outcome(timeout=5).run, job.outcome(timeout=5).code) == (2, code)
        assert job.outcome(run=1).code is LOST
    assert fleet.batch("b").codes == {"CANCELLED": 1, "EXPIRED": 1}
    assert fleet.batch("b").cancel() == {CancelState.ENDED: 2}


def test_an_idempotency_key_means_the_job_as_first_submitted(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    spec = SPEC.model_copy(update={"idempotency_key": "k"})
    job = fleet.submit(spec)
    end(ledger, claim_next(ledger), LOST)
    fleet.dead.requeue(job.id)
    assert fleet.submit(spec) == job
    assert client.ttl(f"{KEY_PREFIX}idem:k") == -1, "as long as the job lives"
    end(ledger, claim_next(ledger))
    assert fleet.submit(spec) == job
    assert client.ttl(f"{KEY_PREFIX}idem:k") > 0


def test_a_stream_yields_each_run_once(fleet: Fleet, ledger: Ledger) -> None:
    """Read outcomes stay; the later run's comes too, and the stream ends when all have ended."""
    again, other = fleet.submit_many([SPEC] * 2, batch="b")
    claims = {claim.job_id: claim for claim in (claim_next(ledger), claim_next(ledger))}
    seen: list[tuple[str, int]] = []

    def collect() -> None:
        seen.extend((outcome.job_id, outcome.run) for outcome in fleet.batch("b").as_completed(timeout=60))

    thread = threading.Thread(target=collect)
    thread.start()
    end(ledger, claims[again.id], LOST)
    wait_until(lambda: seen == [(again.id, 1)], 20, "its first run is seen")
    fleet.dead.requeue(again.id)
    end(ledger, claims[other.id])
    wait_until(lambda: len(seen) == 2, 20, "the other is seen")
    assert thread.is_alive(), "the second run is awaited"
    end(ledger, claim_next(ledger))
    thread.join(30)
    assert seen == [(again.id, 1), (other.id, 1), (again.id, 2)]
    assert [outcome.run for outcome in fleet.as_completed([again])] == [2], "a later reader has the newest only"
    assert {outcome.run for outcome in fleet.batch("b").as_completed(timeout=5)} == {1, 2}


def test_a_late_end_of_an_earlier_run_changes_nothing(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    job = fleet.submit(SPEC)
    claim = claim_next(ledger)
    end(ledger, claim, LOST)
    fleet.dead.requeue(job.id)
    assert ledger.finish(claim, Outcome.of(LOST, job.id)), "the call is repeated, as its answer was lost"
    assert not job.is_done
    second = claim_next(ledger)
    assert ledger.finish(claim, Outcome.of(LOST, job.id))
    assert not client.exists(f"{KEY_PREFIX}duplicates")
    end(ledger, second)
    assert [job.outcome(run=run, timeout=5).code for run in (1, 2)] == [LOST, ErrorCode.OK]


def test_the_commands_queue_again_and_show_runs(
    client: Any, fleet: Fleet, ledger: Ledger, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [*fleet.submit_many([SPEC] * 3, batch="b"), *fleet.submit_many([SPEC] * 2, batch="c")]
    for _ in jobs:
        end(ledger, claim_next(ledger), LOST)
    client.zadd(f"{KEY_PREFIX}dead", {"message-1": 1})
    client.hset(f"{KEY_PREFIX}dead:message-1", mapping={"message": "x", "code": "", "queue": "q"})
    assert main(["dead", "requeue"]) == 2
    assert main(["dead", "requeue", "--all", "--batch", "b"]) == 2
    capfd.readouterr()
    assert main(["dead", "requeue", "--batch", "b"]) == 0
    assert capfd.readouterr().out == "3 queued\n"
    assert main(["dead", "requeue", "--all"]) == 0
    assert capfd.readouterr().out == "2 queued\n"
    assert main(["show", jobs[0].id]) == 0
    shown = capfd.readouterr().out
    assert "state         queued\n" in shown
    assert "run           2 (--run shows run 1, as long as outcomes are kept)\n" in shown
    assert main(["show", jobs[0].id, "--run", "1"]) == 0
    assert "WORKER_LOST" in capfd.readouterr().out
    assert main(["show", jobs[0].id, "--run", "7"]) == 1
    assert "its newest is run 2" in capfd.readouterr().err
    for _ in jobs:
        end(ledger, claim_next(ledger))
    client.delete(f"{KEY_PREFIX}dead:message-1", f"{KEY_PREFIX}dead")


def test_a_job_without_a_message_cannot_run_again(fleet: Fleet, ledger: Ledger) -> None:
    job = fleet.submit(SPEC)
    end(ledger, claim_next(ledger))
    assert fleet._channel.start_runs([(job.id, 1), ("no-such", 1)]) == [RunState.NO_MESSAGE, RunState.UNKNOWN]
    assert job.is_done


def test_a_dead_letter_of_an_old_release_runs_again(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    """It says neither run nor batch, and its job's end stands in the list only."""
    job = fleet.submit(SPEC, batch="b")
    end(ledger, claim_next(ledger), LOST)
    client.hdel(f"{KEY_PREFIX}dead:{job.id}", "run", "batch")
    client.hdel(job_key(job.id), "end_entry")
    client.delete(f"{KEY_PREFIX}ends:b", f"{KEY_PREFIX}counts:b")
    assert dict(fleet.dead.requeue_all("b")) == {job.id: RunState.QUEUED}
    assert fleet.batch("b").counts == (1, 0)
    end(ledger, claim_next(ledger))
    assert (fleet.batch("b").counts, fleet.batch("b").codes) == ((1, 1), {"OK": 1})
    assert job.outcome(run=1).code is LOST


def requeue_dead(fleet: Fleet, gate: threading.Barrier) -> Counter[RunState]:
    """Run again the dead letters that were seen before the gate."""
    states = Counter[RunState]()
    chunks = list(fleet._channel.dead_runs("b"))
    gate.wait()
    for runs in chunks:
        states.update(fleet._channel.start_runs(runs))
    return states


def retry_batch(fleet: Fleet, gate: threading.Barrier) -> Counter[RunState]:
    batch = fleet.batch("b")
    gate.wait()
    return Counter(batch.retry().states)


def click_twice(url: str, retry: Callable[[Fleet, threading.Barrier], Counter[RunState]]) -> Counter[RunState]:
    """Two producers click at the same moment; return what became of each click's jobs."""
    gate, states = threading.Barrier(2), Counter[RunState]()

    def click() -> None:
        with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
            states.update(retry(fleet, gate))

    clicks = [threading.Thread(target=click) for _ in range(2)]
    for thread in clicks:
        thread.start()
    for thread in clicks:
        thread.join()
    return states


@pytest.mark.parametrize(("retry", "code"), [(retry_batch, ErrorCode.EXIT_NONZERO), (requeue_dead, LOST)])
def test_a_quarter_of_a_batch_is_run_again_by_two_producers_at_once(
    url: str, client: Any, fleet: Fleet, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, *, retry: Any, code: ErrorCode
) -> None:
    """Each job that is retried has two runs, each run one outcome."""
    jobs, retried = JOBS, JOBS // 4
    monkeypatch.setattr(end_calls, "MAX_DEAD_LETTERS", retried)
    ids = [job.id for job in fleet.submit_many([SPEC] * jobs, batch="b")]
    lost = set(ids[::4])
    for _ in ids:
        claim = claim_next(ledger)
        end(ledger, claim, code if claim.job_id in lost else ErrorCode.OK)
    assert fleet.batch("b").codes == {"OK": jobs - retried, code.value: retried}

    began = time.monotonic()
    states = click_twice(url, retry)
    print(f"{retried} of {jobs} jobs were queued again in {time.monotonic() - began:.1f} s, by two producers at once")  # noqa: T201  with -s

    # `retry` looks for failed jobs while the other click starts them: it need not find all of them.
    assert states.pop(RunState.QUEUED) == retried
    assert set(states) <= {RunState.LATER}
    assert states[RunState.LATER] <= retried
    assert fleet.batch("b").counts == (jobs, jobs - retried)
    for _ in range(retried):
        end(ledger, claim_next(ledger))
    assert ledger.claim("none", [DEFAULT_QUEUE])[0] is None, "nothing was queued twice"
    assert (fleet.batch("b").counts, fleet.batch("b").codes) == ((jobs, jobs), {"OK": jobs})
    runs = {outcome.job_id: outcome.run for outcome in fleet.batch("b").as_completed(timeout=600)}
    assert runs == {job_id: 2 if job_id in lost else 1 for job_id in ids}
    earlier = client.keys(f"{KEY_PREFIX}run:*")
    assert {key.decode() for key in earlier} == {run_key(job_id, 1) for job_id in lost}
    assert len(client.xrange(f"{KEY_PREFIX}ends:b")) == jobs
    assert lasting_keys(client, ("owners", "queues")) == []


def test_a_run_ends_once_where_an_older_workers_end_of_the_run_before_comes_late(
    client: Any, fleet: Fleet, ledger: Ledger
) -> None:
    job = fleet.submit(SPEC, batch="b")
    end(ledger, claim_next(ledger), LOST)
    # As a worker of e5bcdee leaves it: the end stands in the list alone.
    client.delete(f"{KEY_PREFIX}ends:b", f"{KEY_PREFIX}counts:b")
    client.hdel(job_key(job.id), "end_entry")
    fleet.dead.requeue(job.id, run=1)
    end(ledger, claim_next(ledger))
    assert [fields[b"run"] for _, fields in client.xrange(f"{KEY_PREFIX}ends:b")] == [b"2"]
    assert fleet.batch("b").codes == {"OK": 1}
