"""Sentinel together with the users of deploy/redis: each part works before and after a fail-over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr
from redis_servers import UserCluster
from sandfleet import Fleet, Outcome, SandboxSpec, Settings
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import DEFAULT_QUEUE
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.replicas import Replicas
from sandfleet_worker.host import connect
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

SPEC = SandboxSpec(image="x", command=["true"])
JOBS = 5


def end_all(ledger: Ledger, name: str) -> int:
    """End what is queued, as a worker does; return how many."""
    number = 0
    while (claim := ledger.claim(f"{name}-{number}", [DEFAULT_QUEUE])[0]) is not None:
        number += 1
        assert ledger.finish(claim, Outcome.of(ErrorCode.OK, claim.job_id, exit_code=0))
    return number


def test_each_user_works_on_after_a_fail_over(tmp_path: Path) -> None:
    with UserCluster(tmp_path) as cluster:
        worker = WorkerSettings(redis_url=SecretStr(cluster.url_of("worker")))
        of_producer, of_web = (Settings(redis_url=SecretStr(cluster.url_of(user))) for user in ("producer", "web"))
        with Fleet(of_producer) as producer, Fleet(of_web) as web, connect(worker) as client:
            ledger = Ledger(client, Identity.new("here"), 60, Replicas(1, 5.0))
            ledger.register(600_000)
            for part in ("before", "after"):
                jobs = producer.submit_many([SPEC] * JOBS, batch=part)
                assert end_all(ledger, part) == JOBS
                assert [job.outcome(10).code for job in jobs] == ["OK"] * JOBS
                assert web.state.read_summary().at > 0
                assert cluster.read_refusals() == []
                if part == "before":
                    cluster.fail_over()
                    wait_until(lambda: producer.batch("before").codes == {"OK": JOBS}, 30, "the new primary is found")
                    wait_until(lambda: bool(client.ping()), 30, "by the worker, too")
