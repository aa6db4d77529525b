"""The table of a large batch: killed and resumed, it equals the whole; memory does not grow.

`make test-big` writes a million rows; by default it is some thousand.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from bare_redis import SPEC, forget_jobs
from sampling import Sampling
from sandfleet import ErrorCode, Fleet, Outcome
from sandfleet_config.outcome import StreamOutput
from sandfleet_config.queues import batch_key, result_key
from sandfleet_config.scripts import stored_result
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

JOBS = int(os.environ.get("TEST_RESULTS_JOBS", "20000"))
CHUNK = 10_000
TTL_SECONDS = 3600
MAX_BYTES = {"jsonl": 150 << 20, "csv": 150 << 20, "parquet": 400 << 20}
"""Greatest memory of the process: 60 MB of it are Python and its packages, 120 MB with pyarrow."""


def forge(client: Any, count: int) -> None:
    """Write the list of a batch and outcomes of about 1 KB, as if all jobs had ended."""
    model = Outcome.of(ErrorCode.EXIT_NONZERO, "{id}", exit_code=3, labels={"n": "{n}"}, batch="big", duration=0.1)
    model = model.model_copy(update={"stdout": StreamOutput.of(b"out {n} " + b"x" * 100)})
    text = stored_result(model)
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        ids = [f"job-{number:07}" for number in numbers]
        pipe = client.pipeline(transaction=False)
        pipe.rpush(batch_key("big"), *ids)
        for job_id, number in zip(ids, numbers, strict=True):
            pipe.set(result_key(job_id), text.replace("{id}", job_id).replace("{n}", str(number)), ex=TTL_SECONDS)
        pipe.execute()
    client.expire(batch_key("big"), TTL_SECONDS)


@pytest.fixture(scope="module")
def big(redis_server: Any) -> Iterator[str]:
    """A Redis with a batch of `JOBS` ended jobs; returns its URL."""
    forge(redis_server.client, JOBS)
    yield redis_server.url
    redis_server.client.flushdb()


def start(url: str, path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sandfleet.cli", "batch", "results", "big", "-o", str(path), *words]
    env = {"PATH": os.environ["PATH"], "SANDFLEET_REDIS_URL": url}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


class PeakMemory(Sampling):
    """The greatest resident memory of a process, in bytes.

    `ru_maxrss` would include the parent's before the exec.
    """

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._status = Path(f"/proc/{pid}/status")
        self.bytes = 0

    def sample(self) -> None:
        """Read VmHWM (proc_pid_status(5)); a process that ends has none."""
        for line in self._status.read_text().splitlines():
            if line.startswith("VmHWM"):
                self.bytes = int(line.split()[1]) << 10


def end(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Wait for the process; return its stderr, and its greatest memory in bytes."""
    assert process.stderr is not None
    with PeakMemory(process.pid) as memory, process.stderr:
        said = process.stderr.read()
    process.wait()
    return said, memory.bytes


def kill_after_a_checkpoint(process: subprocess.Popen[str], path: Path) -> int:
    """Kill the process once it has saved more than its start; return its last checkpoint's rows."""
    state = path.with_name(f".{path.name}.sandfleet-state")
    wait_until(lambda: state.exists() and state.read_bytes().count(b"\n") > 2, 60, "a checkpoint")
    process.send_signal(signal.SIGKILL)
    end(process)
    rows: int = json.loads(state.read_text().splitlines()[-1])["rows"]
    return rows


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_killed_table_is_gone_on_with_in_constant_memory(big: str, tmp_path: Path, kind: str) -> None:
    whole, path = tmp_path / f"whole.{kind}", tmp_path / f"r.{kind}"
    started = time.monotonic()
    said, used = end(start(big, whole))
    seconds = time.monotonic() - started
    assert f"{JOBS} rows in " in said
    sys.stderr.write(f"{kind}: {JOBS} rows in {seconds:.1f} s, {JOBS / seconds:.0f} rows/s, {used >> 20} MiB\n")
    assert used < MAX_BYTES[kind]
    if is_large := JOBS > 200_000 or kind != "parquet":
        done = kill_after_a_checkpoint(start(big, path), path)
        assert 0 < done < JOBS
        assert not path.exists()
        said, _ = end(start(big, path, "--resume"))
        assert f"{JOBS} rows in " in said
    if kind == "parquet":
        check_parquet(whole)
        if is_large:
            assert (
                pq.ParquetFile(path).read(["job_id", "stdout"]).equals(pq.ParquetFile(whole).read(["job_id", "stdout"]))
            )
    else:
        assert subprocess.run(["cmp", path, whole], check=False).returncode == 0
        with whole.open() as file:
            assert sum(1 for _ in file) == JOBS + (kind == "csv")
    assert {found.name for found in tmp_path.iterdir()} <= {path.name, whole.name}


def check_parquet(path: Path) -> None:
    ids = pq.ParquetFile(path).read(["job_id"])["job_id"].to_pylist()
    assert ids == [f"job-{number:07}" for number in range(JOBS)]


def test_jobs_that_have_not_ended_or_are_forgotten_say_so(fleet: Fleet, client: redis.Redis) -> None:
    jobs = fleet.submit_many([SPEC] * 4, batch="b")
    jobs[0].cancel()
    jobs[1].cancel()
    client.delete(result_key(jobs[1].id))
    client.delete(f"sandfleet:job:{jobs[2].id}")
    found = list(fleet.batch("b").rows(["job_id", "state", "code", "message", "labels.name", "line"]))
    assert [row["job_id"] for row in found] == [job.id for job in jobs]
    assert [row["state"] for row in found] == ["ended", "forgotten", "forgotten", "queued"]
    assert [row["code"] for row in found] == ["CANCELLED", None, None, None]
    assert found[1]["message"] == "its outcome has expired or was deleted"
    assert [row["labels.name"] for row in found] == ["n", "n", None, "n"]
    assert found[3]["line"] == "n: x sh -c true"
    forget_jobs(client)
