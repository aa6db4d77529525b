"""Cause each error code for real: the producer gets its exception, a stock result the code."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from cgrouptree import CGROUP_PARENT, find_cgroups
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import ERROR_CLASSES, SandboxError
from sandfleet_config.settings import Settings
from sandfleet_worker.sandbox.image.store import ImageStore
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet import Job
    from stage import Stage, Stock

FORKS = "while :; do sleep 30 & sleep 0.02; done"
SMALL_MEMORY = {"memory_bytes": "48MiB", "disk_bytes": "200MiB"}
FILL = "dd if=/dev/zero of=/tmp/x bs=1M count=150"


@dataclass
class House:
    """A host whose runsc and images are its own, to be taken away."""

    stage: Stage
    fleet: Fleet
    runsc: Path
    images: ImageStore

    def submit(self, *command: str, **fields: Any) -> Job:
        return self.fleet.submit(SandboxSpec.model_validate({"image": "busybox", "command": command, **fields}))


@pytest.fixture(scope="module")
def house(module_stage_folder: Stage) -> Iterator[House]:
    stage = module_stage_folder
    runsc = stage.folder / "bin/runsc"
    runsc.parent.mkdir()
    shutil.copy(shutil.which("runsc") or "", runsc)
    images = ImageStore(stage.folder / "images")
    images.add("busybox")
    settings = {"SANDFLEET_RUNSC__PATH": str(runsc), "SANDFLEET_IMAGES__ROOT": str(images.root)}
    stage.start(concurrency=2, SANDFLEET_RUNSC__BOOT_DEADLINE_SECONDS="3", **settings).wait_ready()
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url))) as fleet:
        yield House(stage, fleet, runsc, images)


def sentries(house: House) -> list[psutil.Process]:
    """Return the sentries of the one job that runs, and of the sandboxes that idle beside it."""
    found: list[psutil.Process] = []

    def look() -> bool:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or [""]
            if words[0] == "runsc-sandbox" and any(str(house.stage.folder) in word for word in words):
                found.append(process)
        return bool(found)

    wait_until(look, 20, "a sentry runs")
    return found


def kill_sentry(house: House, job: Job) -> None:
    wait_until(lambda: house.stage.has_started(job.id), 20, "the job runs")
    time.sleep(0.5)
    for process in sentries(house):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def lower_fuse(house: House, job: Job) -> None:
    wait_until(lambda: house.stage.has_started(job.id), 20, "the job runs")
    time.sleep(1)
    for folder in find_cgroups(CGROUP_PARENT):
        with contextlib.suppress(OSError):
            Path(folder, "pids.max").write_text("1")


def cancel(_house: House, job: Job) -> None:
    job.cancel()


def nothing(_house: House, _job: Job) -> None:
    pass


Act = tuple[list[str], dict[str, Any], "Callable[[House, Job], None]"]
CAUSES: dict[ErrorCode, Act] = {
    ErrorCode.SIGNALED: (["sh", "-c", "kill -9 $$"], {}, nothing),
    ErrorCode.TIMEOUT: (["sleep", "60"], {"timeout": 0.3}, nothing),
    ErrorCode.OUT_OF_MEMORY: (["sh", "-c", FILL], {"resources": SMALL_MEMORY}, nothing),
    ErrorCode.OUTPUT_LIMIT: (["yes"], {"output": {"max_bytes": 100, "on_limit": "kill"}}, nothing),
    ErrorCode.DISK_LIMIT: (["sh", "-c", FILL], {"resources": {"disk_bytes": "8MiB"}}, nothing),
    ErrorCode.PIDS_LIMIT: (["sh", "-c", FORKS], {}, lower_fuse),
    ErrorCode.COMMAND_NOT_FOUND: (["/no/such"], {}, nothing),
    ErrorCode.COMMAND_NOT_EXECUTABLE: (["/etc/passwd"], {}, nothing),
    ErrorCode.WORKING_DIR_INVALID: (["true"], {"working_dir": "/no/such"}, nothing),
    ErrorCode.USER_INVALID: (["true"], {"security": {"user": "no-such-user"}}, nothing),
    ErrorCode.IMAGE_NOT_FOUND: (["true"], {"image": "no-such-image"}, nothing),
    ErrorCode.SECURITY_VIOLATION: (["true"], {"runsc_path": "/bin/sh"}, nothing),
    ErrorCode.SPEC_INVALID: (["true"], {"timeout": 100_000}, nothing),
    ErrorCode.CANCELLED: (["sleep", "60"], {}, cancel),
    ErrorCode.GVISOR_NOT_AVAILABLE: (["true"], {"platform": "kvm", "max_attempts": 1}, nothing),
    ErrorCode.SANDBOX_EXECUTION_FAILED: (["sleep", "25"], {"max_attempts": 1}, kill_sentry),
}


@pytest.mark.parametrize("code", CAUSES, ids=lambda code: code.value)
def test_each_code_is_its_exception_and_a_stock_result(house: House, stock: Stock, code: ErrorCode) -> None:
    command, fields, act = CAUSES[code]
    job = house.submit(*command, **fields)
    act(house, job)

    with pytest.raises(SandboxError) as caught:
        job.result(timeout=60)

    assert type(caught.value) is ERROR_CLASSES[code], caught.value
    assert caught.value.outcome is not None
    assert caught.value.outcome.code is code
    record = stock.wait(job.id)
    assert record["status"] == "FAILURE"
    assert record["result"]["exc_message"][:2] == [code.value, caught.value.message]


def test_every_fault_that_a_worker_finds_reaches_the_producer(house: House) -> None:
    job = house.submit("true", timeout=100_000, grace=1000)

    with pytest.raises(SandboxError) as caught:
        job.result(timeout=30)

    assert [fault["field"] for fault in caught.value.errors] == ["timeout", "grace"]


def test_a_removed_runsc_is_reported_and_the_worker_recovers_when_it_is_back(house: House) -> None:
    away = house.runsc.with_name("away")
    house.runsc.rename(away)
    try:
        outcome = house.submit("true").outcome(timeout=30)
        assert outcome.code is ErrorCode.GVISOR_NOT_AVAILABLE
        assert outcome.retryable
    finally:
        away.rename(house.runsc)
    assert house.submit("true").outcome(timeout=30).code is ErrorCode.OK


def test_an_image_that_is_not_a_filesystem_is_refused(house: House) -> None:
    image = house.images.add("busybox")
    kept = image.erofs_path.read_bytes()
    # The same size and time: what the store can see of it is as it was.
    stat = image.erofs_path.stat()
    image.erofs_path.write_bytes(bytes(len(kept)))
    os.utime(image.erofs_path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    try:
        outcome = house.submit("true").outcome(timeout=30)
    finally:
        image.erofs_path.write_bytes(kept)
        os.utime(image.erofs_path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert outcome.code is ErrorCode.SANDBOX_CREATION_FAILED
    assert house.submit("true").outcome(timeout=30).code is ErrorCode.OK
