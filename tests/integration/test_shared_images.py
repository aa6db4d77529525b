"""Images that one host pushes into the store and others run: a folder, workers and sandboxes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, Outcome, Settings
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.settings import ImagesSettings, WorkerSettings
from sandfleet_config.store.folder import FolderStore
from sandfleet_config.store_settings import StoreSettings
from sandfleet_worker.commands.checks import Finding, State
from sandfleet_worker.commands.image_checks import check_shared
from sandfleet_worker.sandbox.image.shared_facts import SharedFacts
from sandfleet_worker.sandbox.image.staging import locked
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.shared_images import EARLIER_KEY, SHARED_KEY
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage, Worker

SECONDS = 60
BIG_BYTES = 24 << 20


class Site:
    """Two hosts with images of their own, and one store."""

    def __init__(self, stage: Stage, fleet: Fleet) -> None:
        self.stage, self.fleet = stage, fleet
        self.store = stage.folder / "store"
        self.store.mkdir()
        self.here, self.elsewhere = (ImageStore(stage.folder / name) for name in ("here", "elsewhere"))

    @property
    def env(self) -> dict[str, str]:
        return {"SANDFLEET_STORE__URL": f"file://{self.store}", "SANDFLEET_WARM__SIZE": "0"}

    def add(self, text: str, name: str = "app", size: int = 0) -> str:
        """Make an image on the first host whose program prints `text`; return its digest."""
        tree = self.stage.folder / f"tree-{name}-{text}"
        (tree / "bin").mkdir(parents=True)
        shutil.copy(str(shutil.which("busybox")), tree / "bin/busybox")
        (tree / "bin/cat").symlink_to("busybox")
        (tree / "which").write_text(text)
        (tree / "noise").write_bytes(os.urandom(size))
        return self.here.add(name, f"rootfs:{tree}").digest

    def command(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `sandfleet-worker images ...` on the first host."""
        env = self.stage.env | self.env | {"SANDFLEET_IMAGES__ROOT": str(self.here.root)} | settings
        argv = [sys.executable, "-m", "sandfleet_worker.cli", "images", *words]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    def push(self, name: str = "app") -> str:
        """Push an image of the first host; return the digest that it is shared by."""
        done = self.command("push", name)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[1]

    def start_here(self, **settings: str) -> Worker:
        worker = self.stage.start(2, **(self.env | {"SANDFLEET_IMAGES__ROOT": str(self.here.root)} | settings))
        worker.wait_ready()
        return worker

    def start_elsewhere(self, shared: str = "app", **settings: str) -> Worker:
        """Start a worker that counts as another host, with images of its own: none at first."""
        folder = self.stage.folder / "host-2"
        folder.mkdir(exist_ok=True)
        own = {
            "SANDFLEET_IMAGES__ROOT": str(self.elsewhere.root),
            "SANDFLEET_IMAGES__SHARED": shared,
            "SANDFLEET_SLOTS_DIR": str(folder / "slots"),
        }
        stage, python = self.stage, self.stage.python
        program = ("--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh", python)
        stage.python = "unshare"
        try:
            worker = stage.start(2, (*program, "-m", "sandfleet_worker.cli", "start"), **(self.env | own | settings))
        finally:
            stage.python = python
        worker.wait_ready()
        return worker

    def submit(self, image: str = "app", **fields: Any) -> Any:
        batch = fields.pop("batch", None)
        spec = {"image": image, "command": ["/bin/cat", "/which"], "timeout": 30, **fields}
        return self.fleet.submit(spec, batch=batch)

    def run(self, image: str = "app", **fields: Any) -> Outcome:
        outcome: Outcome = self.submit(image, **fields).outcome(timeout=SECONDS)
        return outcome

    def object(self, sha256: str) -> Path:
        return self.store / "objects" / sha256[:2] / sha256

    def assert_nothing_taken(self) -> None:
        assert self.elsewhere.list() == []
        staging = self.elsewhere.root / "staging"
        assert not staging.exists() or list(staging.iterdir()) == []


@pytest.fixture
def site(stage: Stage) -> Iterator[Site]:
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url))) as fleet:
        yield Site(stage, fleet)
    stage.redis.delete(SHARED_KEY, f"{KEY_PREFIX}store:pins")


def test_an_image_that_is_built_once_runs_on_another_host(site: Site) -> None:
    own = site.add("one")
    digest = site.push()
    assert digest not in {"", own}
    assert site.here.resolve("app").digest == digest, "all hosts run the same digest, also the one that pushed it"
    again = site.command("push", "app")
    assert (again.stdout, again.stderr) == (f"app {digest}\n", "was in the store already\n")
    listed = json.loads(site.command("list", "--shared", "--json", SANDFLEET_IMAGES__SHARED="ap*").stdout)
    assert listed == [{"name": "app", "digest": digest, "is_here": True, "is_taken": True}]

    site.start_elsewhere("ap*")
    outcomes = [site.run() for _ in range(2)]
    assert [(outcome.code, outcome.stdout.text) for outcome in outcomes] == [(ErrorCode.OK, "one")] * 2
    assert {(outcome.image_digest, outcome.host, outcome.image_ref) for outcome in outcomes} == {
        (digest, "elsewhere", None)
    }
    assert {len(outcome.attempts) for outcome in outcomes} == {1}
    pinned = site.run(f"app@{digest}")
    assert (pinned.code, pinned.image_digest) == (ErrorCode.OK, digest)
    assert [image.digest for image in site.elsewhere.list()] == [digest]

    assert site.command("unshare", "app").returncode == 0
    assert site.stage.redis.exists(SHARED_KEY, f"{KEY_PREFIX}store:pins") == 0
    refused = site.command("unshare", "app")
    assert (refused.returncode, "images list --shared" in refused.stderr) == (1, True)
    assert site.run().code is ErrorCode.IMAGE_NOT_FOUND


def test_a_host_that_does_not_list_an_image_leaves_it_to_one_that_does(site: Site) -> None:
    site.add("one")
    digest = site.push()
    site.start_here(SANDFLEET_IMAGES__ROOT=str(site.stage.folder / "empty"))
    refused = site.run()
    assert (refused.code, refused.retryable) == (ErrorCode.IMAGE_NOT_FOUND, False)
    assert f"add app or app@{digest} to SANDFLEET_IMAGES__SHARED" in refused.message
    site.start_elsewhere(f"app@{digest}")
    outcomes = [site.run() for _ in range(3)]
    assert {(outcome.code, outcome.host) for outcome in outcomes} == {(ErrorCode.OK, "elsewhere")}

    site.add("two")
    site.push()
    site.elsewhere.remove(digest)
    refused = site.run()
    assert refused.code is ErrorCode.IMAGE_NOT_FOUND, "the host lists another digest"
    site.assert_nothing_taken()


def test_two_workers_of_a_host_race_for_an_image_and_one_fetches_it(site: Site) -> None:
    site.add("one", size=BIG_BYTES)
    digest = site.push()
    workers = [site.start_elsewhere() for _ in range(2)]
    with locked(site.elsewhere.new_lock("shared", digest)):  # whoever is first waits
        jobs = [site.submit() for _ in range(6)]
        wait_until(lambda: all("action=job_waits" in worker.log for worker in workers), 30, "each has a job that waits")
    outcomes = [job.outcome(timeout=SECONDS) for job in jobs]
    assert {(outcome.code, outcome.image_digest) for outcome in outcomes} == {(ErrorCode.OK, digest)}
    assert sum(worker.log.count("action=image_fetched") for worker in workers) == 1


def test_a_batch_runs_one_digest_when_a_name_is_pushed_again(site: Site) -> None:
    site.add("one")
    first = site.push()
    site.start_here()
    outcomes = [site.run(batch="pushed")]
    site.add("two")
    second = site.push()
    site.start_elsewhere()
    jobs = [site.submit(batch="pushed", timeout=20 + number) for number in range(8)]
    outcomes += [job.outcome(timeout=SECONDS) for job in jobs]
    assert {(outcome.code, outcome.image_digest, outcome.stdout.text) for outcome in outcomes} == {
        (ErrorCode.OK, first, "one")
    }
    site.stage.workers[0].stop()
    alone = site.run()
    assert (alone.host, alone.image_digest, alone.stdout.text) == ("elsewhere", second, "two")
    assert 0 < site.stage.redis.ttl(EARLIER_KEY) <= 2 * 86400
    site.elsewhere.remove(first)
    late = site.run(batch="pushed")
    assert (late.host, late.image_digest) == ("elsewhere", first), "the store keeps it for a day"


def test_what_was_altered_in_the_store_is_refused(site: Site) -> None:
    site.add("one")
    digest = site.push()
    image = site.here.resolve("app")
    site.start_elsewhere("*")
    for sha256 in (image.erofs_sha256, digest.removeprefix("sha256:")):
        path = site.object(sha256)
        data = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        outcome = site.run()
        assert (outcome.code, outcome.retryable) == (ErrorCode.IMAGE_INVALID, False)
        assert f"object {sha256} in the store {site.store} was altered: delete it there" in outcome.message
        site.assert_nothing_taken()
        path.write_bytes(data)
    assert site.run().code is ErrorCode.OK, "the store has it again"


def test_a_forged_name_in_redis_is_refused(site: Site) -> None:
    site.add("one")
    digest = site.push()
    image = site.here.resolve("app")
    site.start_elsewhere("*")
    for forged, code, text in (
        ("../../etc/passwd", ErrorCode.IMAGE_INVALID, "Redis has no digest"),
        (f"sha256:{image.erofs_sha256}", ErrorCode.IMAGE_INVALID, "its facts cannot be read"),
        (f"sha256:{'0' * 64}", ErrorCode.IMAGE_NOT_FOUND, "has no object"),
    ):
        site.stage.redis.hset(SHARED_KEY, "app", forged)
        outcome = site.run()
        assert outcome.code is code, outcome.message
        assert text in outcome.message
        site.assert_nothing_taken()
    site.stage.redis.hset(SHARED_KEY, "../up", digest)
    assert [row["name"] for row in json.loads(site.command("list", "--shared", "--json").stdout)] == ["app"]
    site.stage.redis.delete(SHARED_KEY)
    site.stage.redis.set(SHARED_KEY, "no hash", ex=60)
    assert site.run().code is ErrorCode.IMAGE_NOT_FOUND
    assert site.push() == digest
    assert site.run().code is ErrorCode.OK


def test_a_hostile_image_file_with_the_right_digests_ends_its_job_only(site: Site) -> None:
    """A right digest does not prove that an image is harmless (docs/explanation/security.md)."""
    site.add("one")
    site.push()
    store, facts = FolderStore(site.store), json.loads(SharedFacts.of(site.here.resolve("app")).encode())
    hostile = os.urandom(1 << 20)
    header = bytes.fromhex("e2e1f5e0")  # the magic number of EROFS, at 1024
    for data in (hostile, hostile[:1024] + header + hostile[1028:]):
        sha256 = hashlib.sha256(data).hexdigest()
        forged = json.dumps(facts | {"erofs_sha256": sha256, "size_bytes": len(data)}).encode()
        store.put_bytes(sha256, data)
        store.put_bytes(hashlib.sha256(forged).hexdigest(), forged)
        name = f"hostile-{sha256[:8]}"
        site.stage.redis.hset(SHARED_KEY, name, f"sha256:{hashlib.sha256(forged).hexdigest()}")
        if not site.stage.workers:
            site.start_elsewhere("*")
        outcome = site.run(name, max_attempts=1)
        assert outcome.code is ErrorCode.SANDBOX_CREATION_FAILED, outcome.message
    assert site.run().code is ErrorCode.OK


def test_while_the_store_is_down_jobs_are_tried_again(site: Site) -> None:
    site.add("one")
    digest = site.push()
    site.start_elsewhere()
    away = site.store.rename(site.stage.folder / "away")
    outcome = site.run(max_attempts=1)
    assert (outcome.code, outcome.retryable) == (ErrorCode.IMAGE_UNAVAILABLE, True)
    assert str(site.store) in outcome.message
    job = site.submit()
    wait_until(lambda: "is tried again" in site.stage.workers[0].log, 20, "the job is tried again")
    away.rename(site.store)
    outcome = job.outcome(timeout=SECONDS)
    assert (outcome.code, outcome.image_digest) == (ErrorCode.OK, digest)


KILLED_PUSH = """
import os, signal
from sandfleet_config.store.folder import FolderStore
from sandfleet_worker.cli import main

def die(self, sha256, path):
    os.kill(os.getpid(), signal.SIGKILL)

FolderStore.put_file = die
main(["images", "push", "app"])
"""


def test_a_push_that_is_killed_leaves_nothing_that_stays_for_ever(site: Site) -> None:
    site.add("one")
    env = site.stage.env | site.env | {"SANDFLEET_IMAGES__ROOT": str(site.here.root)}
    redis = site.stage.redis
    before = redis.zcard(f"{KEY_PREFIX}store:refs")
    done = subprocess.run([sys.executable, "-c", KILLED_PUSH], env=env, check=False)
    assert done.returncode == -9
    assert redis.exists(SHARED_KEY, f"{KEY_PREFIX}store:pins") == 0, "a pin has no TTL"
    assert redis.zcard(f"{KEY_PREFIX}store:refs") == before + 2, "the store keeps what was uploaded, for a while"
    digest = site.push()
    assert redis.hget(SHARED_KEY, "app") == digest.encode()
    assert redis.zcard(f"{KEY_PREFIX}store:pins") == 2


def test_a_host_with_the_store_in_redis_says_what_to_set(site: Site) -> None:
    site.add("one")
    site.push()
    site.start_elsewhere("*", SANDFLEET_STORE__URL="redis:")
    outcome = site.run()
    assert outcome.code is ErrorCode.IMAGE_NOT_FOUND
    assert "is in Redis, which holds no images: set SANDFLEET_STORE__URL here" in outcome.message


def test_the_doctor_says_which_shared_images_a_host_can_take(site: Site) -> None:
    site.add("one")
    digest = site.push()

    def check(*shared: str, url: str = f"file://{site.store}") -> Finding:
        store, images = StoreSettings(url=url), ImagesSettings(root=site.elsewhere.root, shared=shared)
        return check_shared(WorkerSettings(redis_url=SecretStr(site.stage.redis_url), store=store, images=images))

    assert check("app").detail == "app"
    assert check("other").detail == "nobody shares one that is listed here; 1 more are shared, and not listed here"
    in_redis = check("app", url="redis:")
    assert (in_redis.state, "set SANDFLEET_STORE__URL" in in_redis.fix) == (State.WARNING, True)
    site.object(digest.removeprefix("sha256:")).unlink()
    lost = check("app")
    assert (lost.state, lost.detail) == (State.WARNING, "the store does not have app")
    assert lost.fix.endswith("sandfleet-worker images push app")
    site.store.rename(site.stage.folder / "away")
    assert (check("app").state, str(site.store) in check("app").detail) == (State.WARNING, True)


def test_a_store_that_takes_no_such_sizes_says_what_makes_it_work(site: Site) -> None:
    site.add("one")
    refused = site.command("push", "app", SANDFLEET_STORE__URL="redis:")
    assert refused.returncode == 1
    assert "export SANDFLEET_STORE__URL=file:///FOLDER" in refused.stderr
    assert "sandfleet-worker images push app" in refused.stderr
    for name, text in (("nobody", "no image nobody here"), ("docker://python", "SANDFLEET_IMAGES__PULL_FROM")):
        refused = site.command("push", name)
        assert (refused.returncode, text in refused.stderr) == (1, True), refused.stderr
    assert site.stage.redis.exists(SHARED_KEY, f"{KEY_PREFIX}store:pins") == 0
