"""Jobs with datasets go to a host that has them and can mount them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from releases import GVISOR
from sandfleet import ErrorCode, Fleet, Outcome, Settings
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_worker.sandbox.image.datasets import DatasetStore
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stage import Stage, Worker

OLD_RUNSC, NEW_RUNSC = GVISOR / "debian/runsc", GVISOR / "bin/runsc"


@pytest.fixture
def fleet(stage: Stage) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url))) as fleet:
        yield fleet


def new_root(stage: Stage, host: str) -> Path:
    """Return a root with the images of all tests, and datasets of its own."""
    root = stage.folder / host / "images"
    root.mkdir(parents=True)
    for name in ("blobs", "refs", "locks", "staging"):
        (stage.images / name).mkdir(exist_ok=True)
        (root / name).symlink_to(stage.images / name)
    return root


def add_corpus(root: Path, text: str) -> str:
    """Add the dataset `corpus` with a file `hello` of this text; return its digest in hex."""
    source = root.with_name("source")
    source.mkdir(exist_ok=True)
    (source / "hello").write_text(text)
    return DatasetStore(root).add("corpus", source).digest.removeprefix("sha256:")


def is_announced(stage: Stage, name: str) -> bool:
    return any(stage.redis.sismember(key, name) for key in stage.redis.keys(f"{KEY_PREFIX}images:*"))


def start(stage: Stage, host: str, root: Path, **settings: str) -> Worker:
    """Start a worker on a host of this name; unless `settings` differ, runsc mounts datasets."""
    state = {
        "SANDFLEET_RUNSC__PATH": str(NEW_RUNSC),
        "SANDFLEET_IMAGES__ROOT": str(root),
        "SANDFLEET_SLOTS_DIR": str(root.with_name("slots")),
        "SANDFLEET_WARM__SIZE": "0",
    }
    python, named = stage.python, ("--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host, stage.python)
    stage.python = "unshare"
    try:
        worker = stage.start(2, (*named, "-m", "sandfleet_worker.cli", "start"), **(state | settings))
    finally:
        stage.python = python
    worker.wait_ready()
    return worker


def run(fleet: Fleet, **fields: Any) -> Outcome:
    spec = {"image": "busybox", "command": ["cat", "/data/corpus/hello"], "timeout": 20}
    outcome: Outcome = fleet.submit(spec | {"datasets": [{"name": "corpus"}]} | fields).outcome(timeout=60)
    return outcome


def test_a_job_goes_to_the_host_that_has_its_dataset(stage: Stage, fleet: Fleet) -> None:
    here, there = new_root(stage, "here"), new_root(stage, "there")
    worker = start(stage, "here", here)
    outcome = run(fleet)
    assert (outcome.code, outcome.retryable, len(outcome.attempts)) == (ErrorCode.SPEC_INVALID, False, 1)
    assert outcome.message == (
        "datasets.0: no dataset corpus here (this host has no dataset at all): "
        "run `sandfleet-worker datasets add corpus FOLDER`"
    )
    add_corpus(there, "hello data\n")
    start(stage, "there", there)
    outcomes = [run(fleet) for _ in range(8)]
    assert {(outcome.code, outcome.host, outcome.stdout.text) for outcome in outcomes} == {
        (ErrorCode.OK, "there", "hello data\n")
    }
    assert {len(outcome.attempts) for outcome in outcomes} == {1}, "a job that is put back has not started"
    assert "action=job_put_back" not in worker.log, "a host that lacks the dataset does not even claim the job"
    digest = add_corpus(here, "other data\n")
    wait_until(lambda: is_announced(stage, f"/data/sha256:{digest}"), 5, "the host says that it has it")
    outcomes = [run(fleet, datasets=[{"name": "corpus", "sha256": digest}]) for _ in range(4)]
    assert {(outcome.code, outcome.host, outcome.stdout.text) for outcome in outcomes} == {
        (ErrorCode.OK, "here", "other data\n")
    }


@pytest.mark.skipif(not OLD_RUNSC.exists(), reason="the release of 2024 is not installed")
def test_a_host_with_an_old_runsc_leaves_the_job_to_one_with_a_new_one(stage: Stage, fleet: Fleet) -> None:
    old, new = new_root(stage, "old"), new_root(stage, "new")
    for root in (old, new):
        add_corpus(root, "hello data\n")
    worker = start(stage, "old", old, SANDFLEET_RUNSC__PATH=str(OLD_RUNSC))
    outcome = run(fleet)
    assert (outcome.code, len(outcome.attempts)) == (ErrorCode.SPEC_INVALID, 1)
    assert "cannot mount datasets: install a release of gVisor from 20260126 on" in outcome.message
    start(stage, "new", new)
    assert {(outcome.code, outcome.host) for outcome in (run(fleet) for _ in range(4))} == {(ErrorCode.OK, "new")}
    assert "action=job_put_back" not in worker.log
