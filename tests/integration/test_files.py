"""Files of jobs through the whole queue: from spec and store into the sandbox, and back."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, Outcome, Settings
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import DEAD_TTL_SECONDS
from sandfleet_config.store.folder import FolderStore
from sandfleet_config.store.garbage import collect_garbage
from sandfleet_config.store.protocol import UNUSED_SECONDS
from sandfleet_config.store.references import References
from sandfleet_config.store_settings import StoreSettings
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage, Worker

DEADLINE = {"SANDFLEET_STORE__DEADLINE_SECONDS": "3"}
COPY = "cat in.txt > out/copy.txt; chmod 750 out/copy.txt; ls -ln in.txt; cat in.txt >&2"


class Place:
    """A store in a folder, a fleet with workers that use it, and what jobs need to say."""

    def __init__(self, stage: Stage, folder: Path, fleet: Fleet) -> None:
        self.stage, self.folder, self.fleet = stage, folder, fleet
        self.store = FolderStore(folder)
        self.references = References(stage.redis, self.store)

    @property
    def env(self) -> dict[str, str]:
        return {"SANDFLEET_STORE__URL": f"file://{self.folder}"} | DEADLINE

    def start(self, concurrency: int = 2, **settings: str) -> Worker:
        worker = self.stage.start(concurrency, **self.env | settings)
        worker.wait_ready()
        return worker

    def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.references.keep([name], 60)
        self.store.put_bytes(name, data)
        return name

    def read(self, sha256: str) -> bytes:
        return b"".join(self.store.read(sha256))

    def run(self, script: str, timeout_seconds: float = 60, **fields: Any) -> Outcome:
        spec = {"image": "busybox", "command": ["sh", "-c", script], "timeout": 20, **fields}
        return self.fleet.submit(spec).outcome(timeout=timeout_seconds)

    def find_object(self, sha256: str) -> Path:
        (path,) = self.folder.rglob(sha256)
        return path

    def find_spooled(self) -> list[Path]:
        return [path for path in (self.stage.state / "spool").rglob("*") if path.is_file()]


@pytest.fixture
def place(stage: Stage, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "store"
    folder.mkdir()
    store = StoreSettings(url=f"file://{folder}")
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url), store=store)) as fleet:
        yield Place(stage, folder, fleet)


def test_files_enter_belong_to_the_job_and_artifacts_come_back(place: Place) -> None:
    place.start()
    stored = place.put(b"from the store\n")

    outcome = place.run(
        COPY + "; cat /work/in.txt b/data.bin - > out/all; exit 3",
        files=[
            {"path": "in.txt", "content": "small\n", "mode": "600"},
            {"path": "b/data.bin", "sha256": stored},
            {"path": "out/given", "content": ""},
        ],
        stdin={"sha256": stored},
        artifacts=["out/**", {"glob": "*.txt", "when": "ok"}],
    )

    assert (outcome.code, outcome.exit_code) == (ErrorCode.EXIT_NONZERO, 3), outcome
    assert outcome.stdout.text.split()[:4] == ["-rw-------", "1", "65534", "65534"]
    found = {artifact.path: artifact for artifact in outcome.artifacts}
    assert sorted(found) == ["out/all", "out/copy.txt", "out/given"]
    assert found["out/copy.txt"].mode == "0750"
    assert place.read(found["out/copy.txt"].sha256) == b"small\n"
    assert place.read(found["out/all"].sha256) == b"small\n" + b"from the store\n" * 2
    assert found["out/all"].size == 36
    assert found["out/all"].place == place.store.name
    assert outcome.artifacts_lost is None
    assert place.find_spooled() == []


def test_two_workers_fetch_an_object_once(place: Place) -> None:
    workers = [place.start(), place.start()]
    name = place.put(os.urandom(8 << 20))
    specs = [
        {"image": "busybox", "command": ["sha256sum", "x"], "timeout": 30, "files": [{"path": "x", "sha256": name}]}
        for _ in range(12)
    ]

    outcomes = [job.outcome(timeout=120) for job in place.fleet.submit_many(specs)]

    assert {outcome.stdout.text for outcome in outcomes} == {f"{name}  x\n"}
    assert sum(worker.log.count("action=object_fetched") for worker in workers) == 1
    assert len({outcome.attempts[0].worker for outcome in outcomes}) == 2


def test_a_missing_and_an_altered_object_are_refused_and_named(place: Place) -> None:
    lost, altered = place.put(b"lost"), place.put(b"true")
    jobs = [
        place.fleet.submit(
            {"image": "busybox", "command": ["cat", "x"], "max_attempts": 1, "files": [{"path": "x", "sha256": name}]}
        )
        for name in (lost, altered)
    ]
    place.store.delete(lost)
    path = place.find_object(altered)
    path.chmod(0o600)
    path.write_bytes(b"lie!")

    place.start()

    for name, why, job in zip((lost, altered), ("never uploaded", "was altered"), jobs, strict=True):
        outcome = job.outcome(timeout=60)
        assert outcome.code is ErrorCode.STORE_UNAVAILABLE
        assert name in outcome.message
        assert why in outcome.message
        assert outcome.stdout.text == ""


def test_a_store_that_is_down_makes_a_job_wait_and_then_says_so(place: Place) -> None:
    name = place.put(b"data")
    spec = {"image": "busybox", "command": ["cat", "x"], "timeout": 20, "files": [{"path": "x", "sha256": name}]}
    hopeless = place.fleet.submit({**spec, "max_attempts": 1})
    away = place.folder.with_name("away")
    place.folder.rename(away)
    place.folder.write_text("no folder")
    place.start()

    outcome = hopeless.outcome(timeout=60)
    assert outcome.code is ErrorCode.STORE_UNAVAILABLE
    assert "could not be fetched for 3 s" in outcome.message

    outcome = place.run("echo done > out; echo said", artifacts=["out"])
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, "said\n"), "the verdict stays"
    assert outcome.artifacts == ()
    assert outcome.artifacts_lost is not None
    assert "1 of 1 file is not in the store" in outcome.artifacts_lost
    assert place.find_spooled() == []


def test_a_job_whose_image_is_not_here_gets_no_files(place: Place) -> None:
    name = place.put(b"data")
    job = place.fleet.submit({"image": "not-here", "files": [{"path": "x", "sha256": name}], "timeout": 20})
    worker = place.start()

    assert job.outcome(timeout=60).code is ErrorCode.IMAGE_NOT_FOUND
    assert "action=object_fetched" not in worker.log


def test_a_job_that_waits_for_the_store_starts_when_it_is_back(place: Place) -> None:
    name = place.put(b"data")
    spec = {"image": "busybox", "command": ["cat", "x"], "timeout": 20, "files": [{"path": "x", "sha256": name}]}
    job = place.fleet.submit(spec)
    away = place.folder.with_name("away")
    place.folder.rename(away)
    place.folder.write_text("no folder")
    place.start(SANDFLEET_STORE__DEADLINE_SECONDS="60")

    wait_until(lambda: _state(place, job.id) == b"waiting", 20, "the job waits")
    place.folder.unlink()
    away.rename(place.folder)

    outcome = job.outcome(timeout=60)
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, "data")
    assert [attempt.charged for attempt in outcome.attempts] == [True]


def test_other_jobs_run_while_as_many_as_may_run_at_once_wait_for_the_store(place: Place) -> None:
    specs = [
        {
            "image": "busybox",
            "command": ["cat", "x"],
            "timeout": 20,
            "files": [{"path": "x", "sha256": place.put(data)}],
        }
        for data in (b"one", b"two")
    ]
    jobs = place.fleet.submit_many(specs)
    away = place.folder.with_name("away")
    place.folder.rename(away)
    place.folder.write_text("no folder")
    place.start(2, SANDFLEET_STORE__DEADLINE_SECONDS="60")

    wait_until(lambda: {_state(place, job.id) for job in jobs} == {b"waiting"}, 20, "both wait")
    outcomes = [place.run("echo beside", timeout_seconds=20) for _ in range(3)]

    assert [outcome.stdout.text for outcome in outcomes] == ["beside\n"] * 3
    assert {_state(place, job.id) for job in jobs} == {b"waiting"}
    place.folder.unlink()
    away.rename(place.folder)
    assert [job.outcome(timeout=60).stdout.text for job in jobs] == ["one", "two"]


def test_small_jobs_of_another_worker_do_not_starve_a_big_one_that_has_waited(place: Place) -> None:
    budget = {"SANDFLEET_MEMORY_BUDGET_BYTES": "1200MiB", "SANDFLEET_STORE__DEADLINE_SECONDS": "60"}
    budget["SANDFLEET_POLICY__MEMORY_BYTES"] = "1GiB"
    need = {"image": "busybox", "timeout": 60, "files": [{"path": "x", "sha256": place.put(b"big")}]}
    store = StoreSettings(url=f"file://{place.folder}")
    with Fleet(Settings(redis_url=SecretStr(place.stage.redis_url), store=store, queue="big")) as fleet:
        big = fleet.submit(need | {"command": ["cat", "x"], "resources": {"memory_bytes": "700MiB"}})
        away = place.folder.with_name("away")
        place.folder.rename(away)
        place.folder.write_text("no folder")
        place.start(8, SANDFLEET_QUEUE="big", **budget)
        wait_until(lambda: _state(place, big.id) == b"waiting", 20, "it waits for its file")
        place.start(8, **budget)
        small = {"image": "busybox", "timeout": 20, "resources": {"memory_bytes": "100MiB"}}
        jobs = place.fleet.submit_many([small | {"command": ["sleep", f"{1 + n % 7 / 10}"]} for n in range(100)])
        wait_until(lambda: sum(_state(place, job.id) == b"running" for job in jobs) >= 6, 30, "small ones run")

        place.folder.unlink()
        away.rename(place.folder)

        assert big.outcome(timeout=60).stdout.text == "big"
        assert sum(_state(place, job.id) == b"queued" for job in jobs) > 20, "it did not wait for all of them"
        for job in jobs:
            job.cancel()
        wait_until(lambda: all(_state(place, job.id) == b"ended" for job in jobs), 30, "the others are cancelled")


def test_other_jobs_run_while_the_store_takes_no_file_of_as_many_as_may_run_at_once(place: Place) -> None:
    place.start(2, SANDFLEET_STORE__DEADLINE_SECONDS="120")
    away = place.folder.with_name("away")
    place.folder.rename(away)
    place.folder.write_text("no folder")
    leaves = {"image": "busybox", "command": ["sh", "-c", "echo kept > kept"], "timeout": 20, "artifacts": ["kept"]}
    jobs = place.fleet.submit_many([leaves] * 2)
    wait_until(lambda: len(place.find_spooled()) == len(jobs), 30, "both have ended, and the store takes nothing")

    outcomes = [place.run("echo beside", timeout_seconds=20) for _ in range(3)]

    assert [outcome.stdout.text for outcome in outcomes] == ["beside\n"] * 3
    assert {_state(place, job.id) for job in jobs} == {b"running"}
    place.folder.unlink()
    away.rename(place.folder)
    ended = [job.outcome(timeout=60) for job in jobs]
    assert [place.read(outcome.artifacts[0].sha256) for outcome in ended] == [b"kept\n"] * 2


def _state(place: Place, job_id: str) -> bytes:
    client: Any = place.stage.redis
    return bytes(client.hget(f"sandfleet:job:{job_id}", "state") or b"")


def test_what_a_job_uses_is_kept_for_its_later_runs_however_long_ago_it_was_submitted(place: Place) -> None:
    kept, lost = place.put(b"kept"), place.put(b"lost")
    names = [{"path": "x", "sha256": kept}]
    jobs = [
        place.fleet.submit({"image": "busybox", "command": ["cat", "x"], "timeout": 20, "files": names}),
        place.fleet.submit(
            {"image": "busybox", "max_attempts": 1, "files": [*names, {"path": "y", "sha256": lost}], "timeout": 20}
        ),
    ]
    place.store.delete(lost)
    client: Any = place.stage.redis
    long_ago = time.time() - 2 * UNUSED_SECONDS
    client.zadd(f"{KEY_PREFIX}store:refs", {kept: round(long_ago * 1000)})
    os.utime(place.find_object(kept), (long_ago, long_ago))

    place.start(1)
    assert jobs[0].outcome(timeout=60).code is ErrorCode.OK
    assert jobs[1].outcome(timeout=60).code is ErrorCode.STORE_UNAVAILABLE, "and it is a dead letter"

    assert collect_garbage(client, place.store).objects == 0
    assert place.read(kept) == b"kept"
    seconds_kept = client.zscore(f"{KEY_PREFIX}store:refs", kept) / 1000 - time.time()
    assert seconds_kept == pytest.approx(DEAD_TTL_SECONDS, abs=600), "a person may queue the dead letter again"


def test_output_past_its_cap_goes_to_the_store_up_to_a_ceiling(place: Place) -> None:
    place.start(SANDFLEET_POLICY__STORED_OUTPUT_BYTES="1MiB")
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; head -c 2000000 /dev/zero >&2"

    outcome = place.run(script, output={"max_bytes": 100, "store": True})

    expected = "".join(f"line {number}\n" for number in range(3000)).encode()
    assert outcome.stdout.truncated
    assert outcome.stdout.stored is not None
    assert place.read(outcome.stdout.stored.sha256) == expected
    assert outcome.stderr.stored is not None
    assert outcome.stderr.stored.size == 1 << 20
    assert "only its first 1 MiB" in str(outcome.artifacts_lost)
    outcome = place.run("echo short", output={"store": True})
    assert outcome.stdout.stored is None
    assert outcome.artifacts_lost is None


def test_a_full_spool_and_a_full_cache_are_named(place: Place) -> None:
    place.start(SANDFLEET_FILES__SPOOL_BYTES="100000", SANDFLEET_FILES__CACHE_BYTES="1000")
    outcome = place.run("head -c 200000 /dev/zero > a; echo b > b", artifacts=["*"])
    assert outcome.code is ErrorCode.OK
    assert "SANDFLEET_FILES__SPOOL_BYTES" in str(outcome.artifacts_lost)
    name = place.put(b"x" * 2000)
    outcome = place.run("true", files=[{"path": "x", "sha256": name}], max_attempts=1)
    assert outcome.code is ErrorCode.HOST_RESOURCES
    assert "SANDFLEET_FILES__CACHE_BYTES" in outcome.message


def test_what_a_killed_worker_spooled_is_removed_by_the_next(place: Place) -> None:
    worker = place.start()
    place.folder.rename(place.folder.with_name("away"))
    place.folder.write_text("no folder")
    job = place.fleet.submit(
        {"image": "busybox", "command": ["sh", "-c", "echo x > out"], "timeout": 20, "artifacts": ["out"]}
    )
    wait_until(place.find_spooled, 30, "the file is spooled")
    worker.process.kill()
    worker.process.wait()
    place.folder.unlink()
    place.folder.with_name("away").rename(place.folder)
    place.start()
    outcome = job.outcome(timeout=60)
    assert outcome.code is ErrorCode.OK
    assert [artifact.path for artifact in outcome.artifacts] == ["out"]
    assert len(outcome.attempts) == 2
    assert place.find_spooled() == []
    place.stage.clean()
