"""Jobs whose images workers pull from a real registry on loopback, with TLS and a password."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from imagetools import new_layout
from pydantic import SecretStr
from registries import Registry, run_registry, write_auth
from sandfleet import ErrorCode, Fleet, Outcome, Settings
from sandfleet_config.queues import KEY_PREFIX, job_key
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.sandbox.image.finder import ImageFinder
from sandfleet_worker.sandbox.image.store import ImageStore
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage, Worker

SECONDS = 60
BIG_BYTES = 48 << 20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with run_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images that differ: `one`, `two`, and `big`, which takes a moment to pull."""
    folder = tmp_path_factory.mktemp("layouts")
    for name in ("one", "two", "big"):
        tree = folder / f"{name}-tree"
        (tree / "bin").mkdir(parents=True)
        shutil.copy(str(shutil.which("busybox")), tree / "bin/busybox")
        (tree / "bin/cat").symlink_to("busybox")
        (tree / "which").write_text(name)
        if name == "big":
            (tree / "noise").write_bytes(os.urandom(BIG_BYTES))
        new_layout(folder / name, tree, "--config.cmd=/bin/cat", "--config.cmd=/which")
    return folder


def source(layouts: Path, name: str) -> str:
    return f"oci:{layouts / name}:v1"


@pytest.fixture
def fleet(stage: Stage) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url))) as fleet:
        yield fleet


def new_settings(registry: Registry, images: Path, **more: str) -> dict[str, str]:
    return {
        "SANDFLEET_IMAGES__ROOT": str(images),
        "SANDFLEET_IMAGES__PULL_FROM": registry.name,
        "SANDFLEET_IMAGES__AUTH_FILE": str(registry.auth_file),
        "SANDFLEET_IMAGES__CA_DIR": str(registry.ca_dir),
        "SANDFLEET_WARM__SIZE": "0",
    } | more


def start(stage: Stage, registry: Registry, **more: str) -> Worker:
    """Start a worker that has no image yet and may pull from the registry."""
    worker = stage.start(2, **new_settings(registry, stage.folder / "images", **more))
    worker.wait_ready()
    return worker


def submit(fleet: Fleet, image: str, **fields: Any) -> Any:
    batch = fields.pop("batch", None)
    return fleet.submit({"image": image, "command": ["/bin/cat", "/which"], "timeout": 30, **fields}, batch=batch)


def run(fleet: Fleet, image: str, **fields: Any) -> Outcome:
    outcome: Outcome = submit(fleet, image, **fields).outcome(timeout=SECONDS)
    return outcome


def count_pulls(*workers: Worker) -> int:
    return sum(worker.log.count("action=image_pulled") for worker in workers)


def assert_nothing_half_made(images: Path) -> None:
    staging = images / "staging"
    assert not staging.exists() or list(staging.iterdir()) == []


def test_two_workers_of_a_host_race_for_an_image_and_one_pulls_it(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    digest = registry.push(source(layouts, "one"), "race/app:v1")
    image = f"docker://{registry.name}/race/app:v1"
    workers = [start(stage, registry) for _ in range(2)]
    freeze(registry)
    try:
        jobs = [submit(fleet, image) for _ in range(4)]
        wait_until(lambda: all("action=job_waits" in worker.log for worker in workers), 20, "each has a job that waits")
    finally:
        thaw(registry)
    outcomes = [job.outcome(timeout=SECONDS) for job in jobs]
    assert [(outcome.code, outcome.stdout.text) for outcome in outcomes] == [(ErrorCode.OK, "one")] * 4
    assert {(outcome.image_ref, outcome.image_digest) for outcome in outcomes} == {(image, digest)}
    assert {len(outcome.attempts) for outcome in outcomes} == {1}
    assert max(outcome.timing.image or 0 for outcome in outcomes) > 0.05
    assert count_pulls(*workers) == 1
    assert_nothing_half_made(stage.folder / "images")


def test_a_batch_runs_one_digest_when_its_tag_is_moved(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    first = registry.push(source(layouts, "one"), "moved/app:v1")
    image = f"docker://{registry.name}/moved/app:v1"
    start(stage, registry, SANDFLEET_IMAGES__TAG_TTL="0")
    outcomes = [run(fleet, image, batch="moved")]
    second = registry.push(source(layouts, "two"), "moved/app:v1")
    start(stage, registry, SANDFLEET_IMAGES__TAG_TTL="0", SANDFLEET_IMAGES__ROOT=str(stage.folder / "images-2"))
    jobs = [submit(fleet, image, batch="moved") for _ in range(6)]
    outcomes += [job.outcome(timeout=SECONDS) for job in jobs]
    assert {(outcome.code, outcome.image_digest) for outcome in outcomes} == {(ErrorCode.OK, first)}
    assert len({outcome.attempts[-1].worker for outcome in outcomes}) == 2, "both workers ran some"
    alone = run(fleet, image)
    assert (alone.image_digest, alone.stdout.text) == (second, "two"), "outside of the batch the tag means the new one"
    assert stage.redis.ttl(f"{KEY_PREFIX}pins:moved") > 0


def test_a_retry_outside_a_batch_runs_the_digest_of_the_earlier_run(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    first = registry.push(source(layouts, "one"), "again/app:v1")
    start(stage, registry, SANDFLEET_IMAGES__TAG_TTL="0")
    fails: dict[str, Any] = {"command": ["/bin/cat", "/which", "/none"], "retry_on": ["EXIT_NONZERO"]}
    job = submit(fleet, f"docker://{registry.name}/again/app:v1", max_attempts=1, **fails)
    assert job.outcome(timeout=SECONDS).image_digest == first
    second = registry.push(source(layouts, "two"), "again/app:v1")
    fleet.dead.requeue(job.id)
    kept = job.outcome(timeout=SECONDS)
    assert (kept.run, kept.image_digest, kept.stdout.text) == (2, first, "one")
    fleet.dead.requeue(job.id, resolves_images=True)
    anew = job.outcome(timeout=SECONDS)
    assert (anew.run, anew.image_digest, anew.stdout.text) == (3, second, "two")


def test_while_a_registry_is_down_what_has_a_digest_runs(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    digest = registry.push(source(layouts, "one"), "off/app:v1")
    image = f"docker://{registry.name}/off/app:v1"
    start(stage, registry, SANDFLEET_IMAGES__TAG_TTL="0")
    assert run(fleet, image, batch="off").code is ErrorCode.OK
    registry.kill()
    try:
        alone = submit(fleet, image, max_attempts=1)
        outcomes = [run(fleet, image, batch="off"), run(fleet, f"{image}@{digest}")]
        refused = alone.outcome(timeout=SECONDS)
    finally:
        registry.start()
    assert {(outcome.code, outcome.image_digest) for outcome in outcomes} == {(ErrorCode.OK, digest)}
    assert (refused.code, refused.image_digest) == (ErrorCode.IMAGE_UNAVAILABLE, None), (
        "an old image is not run unasked"
    )
    assert f"name {image}@{digest}, or raise SANDFLEET_IMAGES__TAG_TTL" in refused.message


def test_a_registry_that_is_killed_during_a_pull_is_asked_again(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    digest = registry.push(source(layouts, "big"), "killed/app:v1")
    worker = start(stage, registry)
    job = submit(fleet, f"docker://{registry.name}/killed/app:v1")
    staging = stage.folder / "images" / "staging"
    wait_until(lambda: find_bytes(staging) > 1 << 20, 20, "the pull has begun")
    registry.kill()
    wait_until(lambda: "action=pull_retried" in worker.log, 20, "the pull is tried again")
    registry.start()
    outcome = job.outcome(timeout=SECONDS)
    assert (outcome.code, outcome.image_digest, len(outcome.attempts)) == (ErrorCode.OK, digest, 1)
    assert_nothing_half_made(stage.folder / "images")


def find_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in list(folder.rglob("*")) if path.is_file() and path.exists())


def test_a_worker_that_is_killed_during_a_pull_leaves_nothing(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    registry.push(source(layouts, "big"), "cut/app:v1")
    worker = start(stage, registry)
    job = submit(fleet, f"docker://{registry.name}/cut/app:v1")
    staging = stage.folder / "images" / "staging"
    wait_until(lambda: find_bytes(staging) > 1 << 20, 20, "the pull has begun")
    freeze(registry)
    worker.stop(signal.SIGKILL)
    assert find_bytes(staging) > 1 << 20
    wait_until(lambda: not find_skopeos(registry), 5, "its skopeo has died with it")
    thaw(registry)
    start(stage, registry)
    outcome = job.outcome(timeout=SECONDS)
    assert (outcome.code, [attempt.charged for attempt in outcome.attempts]) == (ErrorCode.OK, [True])
    assert_nothing_half_made(stage.folder / "images")


def freeze(registry: Registry) -> None:
    assert registry.process
    registry.process.send_signal(signal.SIGSTOP)


def thaw(registry: Registry) -> None:
    assert registry.process
    registry.process.send_signal(signal.SIGCONT)


def find_skopeos(registry: Registry) -> list[str]:
    # -ww: pytest sets COLUMNS, at which ps cuts its lines.
    done = subprocess.run(["ps", "-ww", "-eo", "args"], check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if re.match(r"(\S*/)?skopeo ", line) and registry.name in line]


def test_a_job_whose_image_is_pulled_waits_and_can_be_cancelled(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    registry.push(source(layouts, "one"), "waits/app:v1")
    start(stage, registry)
    freeze(registry)
    try:
        job = submit(fleet, f"docker://{registry.name}/waits/app:v1")
        wait_until(lambda: stage.redis.hget(job_key(job.id), "state") == b"waiting", 20, "the job waits")
        wait_until(lambda: find_skopeos(registry), 20, "skopeo asks the registry")
        assert not any(str(registry.auth_file) not in line or "sesame" in line for line in find_skopeos(registry))
        job.cancel()
        outcome = job.outcome(timeout=10)
        assert (outcome.code, outcome.attempts) == (ErrorCode.CANCELLED, ())
        assert 0 < (outcome.timing.image or 0) < 60, "the wait is told, although it has failed"
        wait_until(lambda: not find_skopeos(registry), 5, "skopeo is dead")
    finally:
        thaw(registry)
    assert_nothing_half_made(stage.folder / "images")


def test_other_jobs_run_while_as_many_as_may_run_at_once_wait_for_a_pull(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    registry.push(source(layouts, "one"), "beside/app:v1")
    ImageStore(stage.folder / "images").add("two", source(layouts, "two"))
    worker = start(stage, registry)
    freeze(registry)
    try:
        jobs = [submit(fleet, f"docker://{registry.name}/beside/app:v1") for _ in range(2)]
        states = [job_key(job.id) for job in jobs]
        wait_until(lambda: {stage.redis.hget(key, "state") for key in states} == {b"waiting"}, 20, "both wait")
        outcomes = [submit(fleet, "two").outcome(timeout=20) for _ in range(3)]
        assert {stage.redis.hget(key, "state") for key in states} == {b"waiting"}
    finally:
        thaw(registry)
    assert [outcome.stdout.text for outcome in outcomes] == ["two"] * 3
    assert [job.outcome(timeout=SECONDS).stdout.text for job in jobs] == ["one"] * 2
    assert count_pulls(worker) == 1


def test_a_pull_ends_at_its_deadline(stage: Stage, fleet: Fleet, registry: Registry, layouts: Path) -> None:
    registry.push(source(layouts, "one"), "late/app:v1")
    start(stage, registry, SANDFLEET_IMAGES__PULL_DEADLINE_SECONDS="1.5")
    freeze(registry)
    try:
        outcome = run(fleet, f"docker://{registry.name}/late/app:v1", max_attempts=1)
    finally:
        thaw(registry)
    assert outcome.code is ErrorCode.IMAGE_UNAVAILABLE
    assert "within 1.5 s" in outcome.message
    assert "SANDFLEET_IMAGES__PULL_DEADLINE_SECONDS" in outcome.message


def test_what_cannot_be_pulled_ends_with_its_code_and_what_to_do(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    registry.push(source(layouts, "one"), "codes/app:v1")
    registry.push(foreign(layouts), "codes/foreign:v1")
    start(stage, registry)
    name = f"docker://{registry.name}/codes"
    absent = run(fleet, f"{name}/app:v2")
    assert (absent.code, absent.retryable) == (ErrorCode.IMAGE_NOT_FOUND, False)
    assert "check the name, the tag and the digest" in absent.message
    assert len(absent.attempts) == 1, "it is not tried again"
    lost = run(fleet, f"{name}/app@sha256:{'0' * 64}")
    assert lost.code is ErrorCode.IMAGE_NOT_FOUND
    other = run(fleet, f"{name}/foreign:v1")
    assert (other.code, other.retryable) == (ErrorCode.IMAGE_INVALID, False)
    assert "the image is for linux/riscv64" in other.message
    unlisted = run(fleet, "docker://registry.example/team/app:v1")
    assert unlisted.code is ErrorCode.SECURITY_VIOLATION
    assert "SANDFLEET_IMAGES__PULL_FROM" in unlisted.message


def test_a_wrong_password_is_told_and_tried_elsewhere(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    digest = registry.push(source(layouts, "one"), "secret/app:v1")
    wrong = write_auth(stage.folder / "wrong.json", registry.name, "wrong")
    image = f"docker://{registry.name}/secret/app:v1"
    start(stage, registry, SANDFLEET_IMAGES__AUTH_FILE=str(wrong))
    outcome = run(fleet, image, max_attempts=1)
    assert (outcome.code, outcome.retryable) == (ErrorCode.IMAGE_UNAVAILABLE, True)
    assert "SANDFLEET_IMAGES__AUTH_FILE" in outcome.message
    assert "wrong" not in outcome.message
    start_elsewhere(stage, registry)
    outcome = run(fleet, image)
    assert (outcome.code, outcome.image_digest) == (ErrorCode.OK, digest)


def start_elsewhere(stage: Stage, registry: Registry, **more: str) -> Worker:
    """Start a worker that counts as another host, with images of its own."""
    folder = stage.folder / "elsewhere"
    folder.mkdir(exist_ok=True)
    settings = new_settings(registry, folder / "images", SANDFLEET_SLOTS_DIR=str(folder / "slots"), **more)
    python, program = stage.python, ("--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh", stage.python)
    stage.python = "unshare"
    try:
        worker = stage.start(2, (*program, "-m", "sandfleet_worker.cli", "start"), **settings)
    finally:
        stage.python = python
    worker.wait_ready()
    return worker


def test_a_host_that_may_not_pull_leaves_the_job_to_one_that_may(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    digest = registry.push(source(layouts, "one"), "placed/app:v1")
    start(stage, registry, SANDFLEET_IMAGES__PULL_FROM="registry.example")
    start_elsewhere(stage, registry)
    outcomes = [run(fleet, f"docker://{registry.name}/placed/app:v1") for _ in range(3)]
    assert {(outcome.code, outcome.host, outcome.image_digest) for outcome in outcomes} == {
        (ErrorCode.OK, "elsewhere", digest)
    }


def test_a_digest_that_a_host_has_under_a_forbidden_name_only_runs_elsewhere(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    digest = registry.push(source(layouts, "one"), "closed/app:v1")
    assert registry.push(source(layouts, "one"), "open/app:v1") == digest
    policy = {"SANDFLEET_POLICY__IMAGES": f"docker://{registry.name}/open/*"}
    images = stage.folder / "images"
    settings = ImagesSettings(root=images, auth_file=registry.auth_file, ca_dir=registry.ca_dir)
    ImageFinder(ImageStore(images), settings).pull(f"docker://{registry.name}/closed/app:v1")
    start(stage, registry, **policy)
    image = f"docker://{registry.name}/open/app@{digest}"
    refused = run(fleet, image)
    assert refused.code is ErrorCode.SECURITY_VIOLATION
    assert f"this host has it as docker://{registry.name}/closed/app:v1" in refused.message
    start_elsewhere(stage, registry, **policy)
    outcomes = [run(fleet, image) for _ in range(3)]
    assert {(outcome.code, outcome.host, outcome.image_digest) for outcome in outcomes} == {
        (ErrorCode.OK, "elsewhere", digest)
    }


def test_a_batch_runs_one_digest_of_a_local_name_too(
    stage: Stage, fleet: Fleet, registry: Registry, layouts: Path
) -> None:
    here, there = ImageStore(stage.folder / "images"), ImageStore(stage.folder / "elsewhere" / "images")
    first = here.add("app", source(layouts, "one"))
    there.add("app", source(layouts, "two"))
    start(stage, registry)
    outcomes = [run(fleet, "app", batch="local")]
    start_elsewhere(stage, registry)
    jobs = [submit(fleet, "app", batch="local") for _ in range(6)]
    outcomes += [job.outcome(timeout=SECONDS) for job in jobs]
    assert {(outcome.code, outcome.image_digest) for outcome in outcomes} == {(ErrorCode.OK, first.digest)}
    assert {outcome.image_ref for outcome in outcomes} == {None}, "it is of the host"
    assert {len(outcome.attempts) for outcome in outcomes} == {1}, "a job that is put back has not started"


def foreign(layouts: Path) -> str:
    """An image for another architecture."""
    folder = layouts / "foreign"
    if not folder.exists():
        shutil.copytree(layouts / "one", folder)
        argv = ["umoci", "config", "--image", f"{folder}:v1", "--architecture", "riscv64"]
        subprocess.run(argv, check=True, capture_output=True)
    return f"oci:{folder}:v1"


def test_an_index_keeps_its_own_digest(stage: Stage, fleet: Fleet, registry: Registry, layouts: Path) -> None:
    """The digest that counts is that of the index, and this machine's image is taken from it."""
    own = registry.push(source(layouts, "one"), "many/app:own")
    other = registry.push(foreign(layouts), "many/app:other")
    digest = registry.put_index("many/app", "v1", {"amd64": own, "riscv64": other})
    start(stage, registry)
    outcome = run(fleet, f"docker://{registry.name}/many/app:v1")
    assert (outcome.code, outcome.stdout.text, outcome.image_digest) == (ErrorCode.OK, "one", digest)
    none = registry.put_index("many/app", "v2", {"riscv64": other})
    refused = run(fleet, f"docker://{registry.name}/many/app@{none}")
    assert refused.code is ErrorCode.IMAGE_INVALID
    assert "linux/riscv64" in refused.message
