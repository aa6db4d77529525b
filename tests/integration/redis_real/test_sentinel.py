"""Sentinel and TLS: a fail-over in the middle of a batch, and submits that no replica confirms."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis
from flower_pages import running_flower
from redis_servers import Cluster
from sandfleet import ErrorCode, Fleet, FleetUnavailable, SandboxSpec, Settings
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.replicas import Replicas
from sandfleet_worker.host import connect
from stage import Stage
from stand_in import shell
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis_servers import Server, TlsFiles

SPEC = SandboxSpec(image="x", command=["true"])
SUBMITS, JOBS_A_SUBMIT = 12, 10


def read_settings(cluster: Cluster, **redis: Any) -> Settings:
    files = cluster.tls
    tls = {"ca_file": files.ca, "cert_file": files.client_cert, "key_file": files.client_key} if files else {}
    return Settings.model_validate({"redis_url": cluster.url, "redis": tls | redis})


@contextmanager
def frozen(*servers: Server) -> Iterator[None]:
    """Stop processes, as a host that hangs does."""
    for server in servers:
        os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for server in servers:
            os.kill(server.process.pid, signal.SIGCONT)


def test_a_fail_over_in_the_middle_of_a_batch_over_tls(
    tls: TlsFiles, short_folder: Path, images_root: Path, tmp_path: Path
) -> None:
    with Cluster(tmp_path, tls) as cluster:
        stage = Stage(short_folder, images_root, cluster.url, cluster.servers[0].connect())
        env = {"CA_FILE": tls.ca, "CERT_FILE": tls.client_cert, "KEY_FILE": tls.client_key}
        files = {f"SANDFLEET_REDIS__{name}": str(path) for name, path in env.items()}
        try:
            workers = [stage.start(2, SANDFLEET_LEASE_SECONDS="6", **files) for _ in range(2)]
            for worker in workers:
                worker.wait_ready()
            with Fleet(read_settings(cluster)) as fleet, running_flower(stage, **files) as flower:
                job_ids: list[str] = []

                def submit() -> None:
                    for at in range(SUBMITS):
                        specs = [shell("sleep 0.1; echo $0") for _ in range(JOBS_A_SUBMIT)]
                        job_ids.extend(job.id for job in fleet.submit_many(specs, batch=f"fail-over-{at % 2}"))
                        time.sleep(0.2)

                thread = threading.Thread(target=submit)
                thread.start()
                wait_until(lambda: len(job_ids) >= 3 * JOBS_A_SUBMIT, 20, "a part is submitted")
                waits = fleet.as_completed(list(job_ids), timeout=60)
                primary = cluster.fail_over()
                thread.join(60)
                assert len(job_ids) == SUBMITS * JOBS_A_SUBMIT, "each submit has waited for the new primary"

                outcomes = {outcome.job_id: outcome for outcome in fleet.as_completed(job_ids, timeout=60)}
                assert Counter(outcome.code for outcome in outcomes.values()) == {ErrorCode.OK: len(job_ids)}
                assert len({outcome.job_id for outcome in waits}) == 3 * JOBS_A_SUBMIT, "the wait has gone on"
                counts = [fleet.batch(f"fail-over-{at}").counts for at in range(2)]
                assert [(one.total, one.done) for one in counts] == [(len(job_ids) // 2, len(job_ids) // 2)] * 2

                starts = Counter(
                    job_id for job_id in job_ids for worker in workers for _ in range(count_starts(worker.log, job_id))
                )
                repeated = {job_id for job_id, number in starts.items() if number > 1}
                several = {job_id for job_id, outcome in outcomes.items() if len(outcome.attempts) > 1}
                with primary.connect() as client:
                    wait_until(lambda: repeated <= several | read_told(client), 20, "each repeat is told")
                wait_until(lambda: fleet.has_workers(2), 30, "Celery's part has found the new primary, too")
                wait_until(lambda: flower.ask("/broker", None, flower.password)[0] == 200, 20, "so has Flower")
                names = {queue["name"] for queue in flower.get_json("/api/queues/length")["active_queues"]}
                assert "sandfleet" in names
            assert [worker.process.poll() for worker in workers] == [None, None], workers[0].log + workers[1].log
        finally:
            stage.close()


def read_told(client: Any) -> set[str]:
    return {fields[b"job"].decode() for _, fields in client.xrange(f"{KEY_PREFIX}duplicates")}


def count_starts(log: str, job_id: str) -> int:
    return log.count(f"action=job_started job_id={job_id}")


def test_submit_fails_and_names_the_jobs_where_no_replica_confirms_them(cluster: Cluster) -> None:
    primary = cluster.find_primary()
    replicas = [server for server in cluster.servers if server is not primary]
    with Fleet(read_settings(cluster, replica_seconds=0.2, failover_seconds=0.5)) as fleet:
        with frozen(*replicas), pytest.raises(FleetUnavailable, match="0 of 1 replicas") as caught:
            fleet.submit_many([SPEC, SPEC])
        assert len(caught.value.job_ids) == 2
        with frozen(replicas[0]):
            fleet.submit(SPEC)
    with Fleet(read_settings(cluster, replicas=0)) as fleet, frozen(*replicas):
        fleet.submit(SPEC)


def test_a_submit_of_known_jobs_waits_for_replicas_as_well(cluster: Cluster) -> None:
    spec = SPEC.model_copy(update={"idempotency_key": "one"})
    primary = cluster.find_primary()
    replicas = [server for server in cluster.servers if server is not primary]
    with Fleet(read_settings(cluster, replica_seconds=0.2, failover_seconds=0)) as fleet, frozen(*replicas):
        for _ in range(2):  # the second one queues nothing
            with pytest.raises(FleetUnavailable, match="replicas"):
                fleet.submit(spec)
    with Fleet(read_settings(cluster)) as fleet:
        fleet.submit(spec)


def test_a_worker_goes_on_without_replicas_and_says_so_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    settings = WorkerSettings.model_validate({"redis_url": cluster.url})
    primary = cluster.find_primary()
    with Fleet(read_settings(cluster)) as fleet, connect(settings) as client:
        fleet.submit_many([SPEC] * 3)
        ledger = Ledger(client, Identity.new("here"), 60, Replicas(1, 0.3))
        ledger.register(30)
        with (
            caplog.at_level(logging.WARNING),
            frozen(*(server for server in cluster.servers if server is not primary)),
        ):
            began = time.monotonic()
            claims = [ledger.claim(f"claim-{at}", ["sandfleet"])[0] for at in range(3)]
            seconds = time.monotonic() - began
        assert all(claims)
        assert 0.3 <= seconds < 0.9, "the first one has waited, the next ones not"
    assert [record.__dict__["action"] for record in caplog.records] == ["replicas_missing"]


def test_close_leaves_no_connection_open_to_a_sentinel(cluster: Cluster) -> None:
    fleet = Fleet(read_settings(cluster))
    fleet.ping()
    pool: Any = fleet._channel._connections.redis.connection_pool
    sentinels = [client.connection_pool for client in pool.sentinel_manager.sentinels]
    assert any(one._sock for known in sentinels for one in known._available_connections)
    fleet.close()
    assert not any(one._sock for known in sentinels for one in known._available_connections)


def test_a_connection_that_was_lost_finds_the_new_primary(cluster: Cluster) -> None:
    with connect(WorkerSettings.model_validate({"redis_url": cluster.url})) as client:
        before = client.info("server")["tcp_port"]
        cluster.fail_over()
        after: list[int] = []

        def answers() -> bool:
            try:
                after.append(client.info("server")["tcp_port"])
            except (redis.ConnectionError, redis.TimeoutError):
                return False
            return True

        wait_until(answers, 20, "it answers")
        assert after[-1] != before
