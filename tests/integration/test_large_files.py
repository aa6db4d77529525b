"""Large files, many jobs and a real S3 server that is killed.

`make test-store` runs it in full size.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import s3_server
from bad_servers import SlowServer, run_old_server
from pydantic import SecretStr
from sampling import Sampling
from sandfleet import ErrorCode, Fleet, Settings
from sandfleet_config.store.bucket import BucketStore
from sandfleet_config.store.references import References
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3_server import S3Server
    from stage import Stage, Worker

IS_LARGE = bool(os.environ.get("TEST_STORE_LARGE"))
MIB = 1 << 20
SHARED_BYTES, SHARING_JOBS = (100_000_000, 1000) if IS_LARGE else (10_000_000, 30)
FILE_BYTES, FILE_JOBS = (64 * MIB, 100) if IS_LARGE else (16 * MIB, 12)
STOP_SECONDS = 12.0
"""Within this time a worker with `drain_seconds` of 1 has stopped, on a machine that is busy."""
FLAT_BYTES = 48 * MIB
"""How much a worker may grow while files of any size pass through it."""


class Bucket:
    """An S3 server, and workers and a fleet that use it."""

    def __init__(self, stage: Stage, server: S3Server, fleet: Fleet) -> None:
        self.stage, self.server, self.fleet = stage, server, fleet
        self.store = BucketStore(server.settings())
        self.references = References(stage.redis, self.store)

    def start(self, concurrency: int = 2, **settings: str) -> Worker:
        worker = self.stage.start(concurrency, **server_env(self.server), **settings)
        worker.wait_ready()
        return worker

    def put(self, path: Any) -> str:
        with path.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
        self.references.keep([name], 3600)
        self.store.put_file(name, path)
        return name

    def submit_many(self, specs: list[dict[str, Any]]) -> list[Any]:
        base = {"image": "busybox", "timeout": 120, "resources": {"memory_bytes": "256MiB"}}
        return self.fleet.submit_many([{**base, **spec} for spec in specs])


def server_env(server: S3Server) -> dict[str, str]:
    store = server.settings()
    return {
        "SANDFLEET_STORE__URL": store.url,
        "SANDFLEET_STORE__ENDPOINT": store.endpoint,
        "SANDFLEET_STORE__ACCESS_KEY_ID": store.access_key_id.get_secret_value(),
        "SANDFLEET_STORE__SECRET_ACCESS_KEY": store.secret_access_key.get_secret_value(),
        "SANDFLEET_STORE__DEADLINE_SECONDS": "60",
    }


@pytest.fixture
def bucket(stage: Stage) -> Iterator[Bucket]:
    with s3_server.run_s3_server() as server:
        settings = Settings(redis_url=SecretStr(stage.redis_url), store=server.settings())
        with Fleet(settings) as fleet:
            yield Bucket(stage, server, fleet)


class Memory(Sampling):
    """The most memory that a worker used while the block ran, and what it had before."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._process = psutil.Process(worker.process.pid)
        self.before = self.most = self._process.memory_info().rss

    def sample(self) -> None:
        self.most = max(self.most, self._process.memory_info().rss)


def test_many_jobs_share_one_input_that_the_host_fetches_once(bucket: Bucket, tmp_path: Any) -> None:
    workers = [bucket.start(), bucket.start()]
    data = tmp_path / "data"
    data.write_bytes(os.urandom(SHARED_BYTES))
    name = bucket.put(data)
    spec = {"command": ["sh", "-c", "wc -c < in"], "files": [{"path": "in", "sha256": name}]}

    jobs = bucket.submit_many([spec] * SHARING_JOBS)
    outcomes = list(bucket.fleet.as_completed(jobs, timeout=1800))

    assert {(outcome.code, outcome.stdout.text) for outcome in outcomes} == {(ErrorCode.OK, f"{SHARED_BYTES}\n")}
    assert len(outcomes) == SHARING_JOBS
    assert sum(worker.log.count("action=object_fetched") for worker in workers) == 1


def test_a_worker_does_not_grow_with_the_files_of_its_jobs(bucket: Bucket, tmp_path: Any) -> None:
    worker = bucket.start()
    names = []
    for number in range(3):
        data = tmp_path / str(number)
        data.write_bytes(os.urandom(FILE_BYTES))
        names.append(bucket.put(data))
    script = "cat in > out; head -c 64 /dev/urandom | dd of=out conv=notrunc"
    specs = [
        {
            "command": ["sh", "-c", script],
            "files": [{"path": "in", "sha256": names[number % 3]}],
            "artifacts": [{"glob": "out"}],
        }
        for number in range(FILE_JOBS)
    ]
    warm_up = bucket.submit_many(specs[:2])
    assert {job.outcome(timeout=120).code for job in warm_up} == {ErrorCode.OK}

    with Memory(worker) as memory:
        outcomes = list(bucket.fleet.as_completed(bucket.submit_many(specs), timeout=1800))

    assert {outcome.artifacts_lost for outcome in outcomes} == {None}
    assert {outcome.artifacts[0].size for outcome in outcomes} == {FILE_BYTES}
    assert len({outcome.artifacts[0].sha256 for outcome in outcomes}) == FILE_JOBS
    assert memory.most - memory.before < FLAT_BYTES


def test_a_server_that_is_killed_during_a_batch_loses_nothing_silently(bucket: Bucket, tmp_path: Any) -> None:
    bucket.start(concurrency=3)
    data = tmp_path / "data"
    data.write_bytes(os.urandom(2 * MIB))
    name = bucket.put(data)
    specs = [
        {
            "command": ["sh", "-c", f"cat in > out; echo {number} >> out; sleep 0.2"],
            "files": [{"path": "in", "sha256": name}],
            "artifacts": ["out"],
        }
        for number in range(24)
    ]
    jobs = bucket.submit_many(specs)
    wait_until(lambda: jobs[3].is_done, 60, "some have ended")
    for _ in range(2):
        bucket.server.kill()
        time.sleep(2)
        bucket.server.start()
        time.sleep(2)

    outcomes = [job.outcome(timeout=180) for job in jobs]

    assert {outcome.code for outcome in outcomes} == {ErrorCode.OK}
    assert {outcome.artifacts_lost for outcome in outcomes} == {None}
    for outcome in outcomes:
        size = sum(len(part) for part in bucket.store.read(outcome.artifacts[0].sha256))
        assert size == outcome.artifacts[0].size > 2 * MIB


@pytest.fixture
def slow(stage: Stage, bucket: Bucket) -> Iterator[tuple[Worker, list[str]]]:
    """A worker that reaches the bucket over a slow network, and the transfers that it has begun."""
    with run_old_server(bucket.server.port, SlowServer) as (port, seen):
        env = server_env(bucket.server) | {"SANDFLEET_STORE__ENDPOINT": f"http://127.0.0.1:{port}"}
        worker = stage.start(1, **env, SANDFLEET_DRAIN_SECONDS="1", SANDFLEET_STORE__TIMEOUT_SECONDS="60")
        worker.wait_ready()
        yield worker, seen.passed


def test_a_worker_that_stops_does_not_wait_for_a_slow_upload(bucket: Bucket, slow: tuple[Worker, list[str]]) -> None:
    worker, passed = slow
    script = "head -c 20000000 /dev/zero > out; echo said"
    (job,) = bucket.submit_many([{"command": ["sh", "-c", script], "artifacts": ["out"]}])
    wait_until(lambda: "slow PUT" in passed, 30, "the upload has begun")

    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < STOP_SECONDS

    outcome = job.outcome(timeout=10)
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, "said\n"), "the program has ended"
    assert "the worker stopped during the upload" in str(outcome.artifacts_lost)


def test_a_worker_that_stops_does_not_wait_for_a_slow_fetch(
    bucket: Bucket, slow: tuple[Worker, list[str]], tmp_path: Any
) -> None:
    worker, passed = slow
    (tmp_path / "in").write_bytes(bytes(20_000_000))
    name = bucket.put(tmp_path / "in")
    (job,) = bucket.submit_many([{"command": ["true"], "files": [{"path": "x", "sha256": name}]}])
    wait_until(lambda: "slow GET" in passed, 30, "the fetch has begun")

    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < STOP_SECONDS
    client: Any = bucket.stage.redis
    assert client.hget(f"sandfleet:job:{job.id}", "state") == b"queued"
    job.cancel()
