"""Jobs that do not start: each ends with the code that says why, and whose failure it is."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import (
    GVisorNotAvailable,
    HostResources,
    ImageNotFound,
    SandboxCreationFailed,
    SecurityViolation,
    SpecInvalid,
    UserInvalid,
)
from sandfleet_config.settings import HostSettings, ImagesSettings, RunscSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from conftest import Run

ROUNDS = ("cold", "warm")


def new_spec(*command: str, **fields: Any) -> SandboxSpec:
    return SandboxSpec.model_validate({"image": "busybox", "command": command, **fields})


@pytest.mark.parametrize(
    ("command", "fields", "code"),
    [
        (["no-such-program"], {}, ErrorCode.COMMAND_NOT_FOUND),
        (["/no/such/program"], {}, ErrorCode.COMMAND_NOT_FOUND),
        (["/etc/passwd"], {"image": "python"}, ErrorCode.COMMAND_NOT_EXECUTABLE),
        (["/tmp"], {}, ErrorCode.COMMAND_NOT_EXECUTABLE),
        (["true"], {"working_dir": "/no/such"}, ErrorCode.WORKING_DIR_INVALID),
        (["true"], {"working_dir": "/etc/passwd", "image": "python"}, ErrorCode.WORKING_DIR_INVALID),
    ],
)
def test_a_job_that_cannot_start_ends_with_the_code_of_the_reason(
    run: Run, command: list[str], fields: dict[str, Any], code: ErrorCode
) -> None:
    outcome = run(*command, **fields)
    assert (outcome.code, outcome.exit_code, outcome.signal) == (code, None, None)
    assert outcome.message


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"image": "no-such-image"}, ImageNotFound),
        ({"security": {"user": "no-such-user"}}, UserInvalid),
        ({"security": {"user": "0"}}, UserInvalid),
        ({"security": {"user": "root"}}, UserInvalid),
        ({"platform": "nonsense"}, SecurityViolation),
        ({"runsc_path": "/bin/sh"}, SecurityViolation),
    ],
)
def test_a_refused_spec_raises_the_reason(runner: RunscRunner, fields: dict[str, Any], error: type[Exception]) -> None:
    spec = SandboxSpec.model_validate({"image": "busybox", "command": ["true"], **fields})
    with pytest.raises(error):
        runner.run(spec)


def test_a_job_without_any_command_is_refused(runner: RunscRunner, tmp_path: Path) -> None:
    (tmp_path / "tree/bin").mkdir(parents=True)
    store = ImageStore(tmp_path / "images")
    store.add("bare", f"rootfs:{tmp_path / 'tree'}")
    with RunscRunner(runner.config.model_copy(update={"images": ImagesSettings(root=store.root)})) as bare:
        spec = SandboxSpec(image="bare")
        with pytest.raises(SpecInvalid, match="no command"):
            bare.run(spec)


def test_no_runsc(host: HostSettings) -> None:
    missing = host.model_copy(update={"runsc": host.runsc.model_copy(update={"path": "no-such-runsc"})})
    with RunscRunner(missing) as runner, pytest.raises(GVisorNotAvailable, match="no-such-runsc"):
        runner.run(new_spec("true"))


def test_a_runsc_that_is_too_old_is_refused(host: HostSettings, tmp_path: Path) -> None:
    old = tmp_path / "runsc-old"
    old.write_text("#!/bin/sh\necho 'runsc version 0.0~20221219.0'\n")
    old.chmod(0o755)
    settings = host.model_copy(update={"runsc": host.runsc.model_copy(update={"path": str(old)})})
    with RunscRunner(settings) as runner, pytest.raises(GVisorNotAvailable, match="too old"):
        runner.run(new_spec("true"))


def test_a_runsc_removed_after_start_up(host: HostSettings, tmp_path: Path) -> None:
    copy = tmp_path / "runsc-copy"
    shutil.copy(shutil.which("runsc") or "", copy)
    settings = host.model_copy(update={"runsc": host.runsc.model_copy(update={"path": str(copy)})})
    with RunscRunner(settings) as runner:
        assert runner.run(new_spec("true")).exit_code == 0
        copy.unlink()
        with pytest.raises(GVisorNotAvailable):
            runner.run(new_spec("true"))


def test_a_platform_that_hangs_at_boot_is_given_up_in_time(host: HostSettings) -> None:
    """kvm: where it works the job runs; elsewhere the boot deadline or runsc itself says so."""
    settings = host.model_copy(update={"runsc": RunscSettings(root_dir=host.runsc.root_dir, boot_deadline_seconds=2)})
    started = time.monotonic()
    with RunscRunner(settings) as runner:
        try:
            assert runner.run(new_spec("true", platform="kvm")).exit_code == 0
        except GVisorNotAvailable as error:
            assert "kvm" in error.message  # noqa: PT017  either end is right, depending on the machine
    assert time.monotonic() - started < 15


def test_a_sandbox_that_cannot_be_built(runner: RunscRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = runner.images.resolve("busybox")
    damaged = tmp_path / "damaged.erofs"
    damaged.write_bytes(b"no image at all" * 1000)
    broken = image.model_copy(update={"erofs_path": damaged}) if hasattr(image, "model_copy") else image
    monkeypatch.setattr(type(image), "erofs_path", damaged, raising=False)
    monkeypatch.setattr(runner.images, "resolve", lambda _name: broken)
    with pytest.raises(SandboxCreationFailed):
        runner.run(new_spec("true"))


def test_a_full_disk_of_the_host_is_the_hosts_trouble(host: HostSettings, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(small)], check=True)
    try:
        settings = host.model_copy(update={"runsc": RunscSettings(root_dir=small)})
        with RunscRunner(settings) as runner:
            with contextlib.suppress(OSError):
                (small / "ballast").write_bytes(bytes(1 << 20))
            spec = new_spec("true")
            with pytest.raises((HostResources, SandboxCreationFailed)) as caught:
                runner.run(spec)
            assert caught.value.retryable
            (small / "ballast").unlink()
            assert runner.run(new_spec("true")).exit_code == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)
