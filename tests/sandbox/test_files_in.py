"""Files enter a sandbox before its program starts, as the job's user, within the job's limits."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import Cancelled, HostResources, SpecInvalid
from sandfleet_worker.sandbox.process import supervision
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.inputs import InputFile
from sandfleet_worker.sandbox.start_hooks import NoHooks
from transferring import new_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.process.runsc import RunscBinary
    from transferring import Carry

ROUNDS = ("cold", "warm")
MIB = 1 << 20


class SlowSource(io.RawIOBase):
    """Gives one byte at a time, each after `seconds`."""

    def __init__(self, seconds: float, on_read: Callable[[], None] = lambda: None) -> None:
        self._seconds, self._on_read = seconds, on_read

    def read(self, size: int = -1) -> bytes:
        del size
        self._on_read()
        time.sleep(self._seconds)
        return b"x"


def new_slow(size: int, seconds: float, on_read: Callable[[], None] = lambda: None) -> InputFile:
    def open_source() -> SlowSource:
        return SlowSource(seconds, on_read)

    return InputFile("slow", size, open_source)  # type: ignore[arg-type]  # read and close are enough


@pytest.mark.parametrize("is_read_only", [True, False])
def test_files_belong_to_the_job_which_starts_beside_them(carry: Carry, *, is_read_only: bool) -> None:
    files = [
        new_file(
            "run.sh",
            b"#!/bin/sh\npwd; stat -c '%n %a %u:%g' /work . a a/b a/b/c run.sh /tmp/t; cat a/b/c; echo more >>a/b/c\n",
            0o755,
        ),
        new_file("a/b/c", b"text\n", 0o600),
        new_file("/tmp/t"),
    ]
    security = {"user": "1000:1001", "read_only_rootfs": is_read_only}
    carried = carry("./run.sh", files=files, artifacts=["**"], security=security)
    assert carried.outcome.code is ErrorCode.OK, (carried.outcome.message, carried.outcome.stderr.text)
    assert carried.outcome.stdout.text.splitlines() == [
        "/work",
        *(f"{name} 755 1000:1001" for name in ("/work", ".", "a", "a/b")),
        *("a/b/c 600 1000:1001", "run.sh 755 1000:1001", "/tmp/t 644 1000:1001", "text"),
    ]
    assert carried.files["a/b/c"] == b"text\nmore\n"
    assert carried.lost == ""


def test_a_working_dir_of_the_spec_counts_and_files_stay_in_work(carry: Carry) -> None:
    carried = carry("sh", "-c", "pwd; ls /work", files=[new_file("f")], working_dir="/tmp")
    assert carried.outcome.stdout.text == "/tmp\nf\n"


def test_a_job_without_files_has_a_work_folder_that_it_cannot_write(carry: Carry) -> None:
    carried = carry("sh", "-c", "pwd; touch /work/f")
    assert carried.outcome.stdout.text == "/\n"
    assert "Read-only file system" in carried.outcome.stderr.text


def test_a_large_file_arrives_whole(carry: Carry) -> None:
    data = os.urandom(MIB) * 24
    carried = carry("sha256sum", "big", files=[new_file("big", data)])
    assert carried.outcome.stdout.text == f"{hashlib.sha256(data).hexdigest()}  big\n"


def test_stdin_may_come_from_a_source_of_any_size(carry: Carry) -> None:
    data = os.urandom(MIB) * 24
    assert (
        carry("sha256sum", stdin=new_file("stdin", data)).outcome.stdout.text
        == f"{hashlib.sha256(data).hexdigest()}  -\n"
    )
    assert carry("cat", stdin=new_file("stdin")).outcome.stdout.text == ""
    assert carry("true", stdin=new_file("stdin", data)).outcome.code is ErrorCode.OK
    assert carry("head", "-c", "5", stdin=new_file("stdin", data)).outcome.stdout.bytes == data[:5]


def test_files_count_against_the_disk(carry: Carry, runsc: RunscBinary) -> None:
    files = [new_file("big", bytes(6 * MIB))]
    carried = carry("dd", "if=/dev/zero", "of=f", "bs=1M", "count=3", files=files, resources={"disk_bytes": "8MiB"})
    assert carried.outcome.code is ErrorCode.DISK_LIMIT
    assert "2+0 records out" in carried.outcome.stderr.text
    with pytest.raises(SpecInvalid, match=r"they take 6 MiB, and resources\.disk_bytes is 4 MiB"):
        carry("true", files=files, resources={"disk_bytes": "4MiB"})
    # Folders take inodes, which releases before 20260520 do not count.
    many = [new_file(f"a{number}/b/c/f") for number in range(400)]
    outcome = carry("true", files=many, resources={"disk_bytes": "1MiB"}).outcome
    if runsc.abilities.is_quiet:
        assert outcome.code is ErrorCode.SPEC_INVALID
        assert outcome.message == "files: 400 files of 0 bytes do not fit into resources.disk_bytes of 1 MiB: raise it"
    else:
        assert outcome.code is ErrorCode.OK


def test_files_that_do_not_fit_into_the_memory_say_so(carry: Carry) -> None:
    carried = carry("true", files=[new_file("big", bytes(60 * MIB))], resources={"memory_bytes": "64MiB"})
    assert carried.outcome.code is ErrorCode.OUT_OF_MEMORY
    assert carried.outcome.message.startswith("the job's files of 60 MiB count as memory and do not fit into 64 MiB")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/x/y", "the job's user may not write there"),
        ("/bin/sh/x", "a part of its path is a file or a symbolic link"),
        ("/tmp/d", "there is a folder of that name"),
        ("/tmp/" + "n" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_with_the_reason(carry: Carry, path: str, why: str) -> None:
    files = [new_file("ok"), new_file("/tmp/d/f"), new_file(path)]
    outcome = carry("true", files=files, security={"read_only_rootfs": False}).outcome
    assert outcome.code is ErrorCode.SPEC_INVALID
    assert outcome.message == f"files: {path!r} cannot be written: {why}"
    assert outcome.duration is None


@pytest.mark.parametrize("path", ["/bin/planted", "/var/run/x/planted", "/tmp/a"])
def test_no_link_of_the_image_is_followed(carry_as_root: Carry, path: str) -> None:
    """/bin and /var/run are links to other folders of the image."""
    security = {"user": "0:0", "read_only_rootfs": False}
    carried = carry_as_root("true", files=[new_file(path)], image="python", security=security)
    if path == "/tmp/a":
        assert carried.outcome.code is ErrorCode.OK
        return
    assert carried.outcome.code is ErrorCode.SPEC_INVALID
    assert carried.outcome.message.endswith("a part of its path is a file or a symbolic link")


def test_the_clock_of_the_timeout_starts_after_the_files(carry: Carry) -> None:
    assert carry("true", files=[new_slow(6, 0.3)], timeout=1, grace=0).outcome.code is ErrorCode.OK


def test_the_start_is_asked_for_when_the_files_are_in(carry: Carry) -> None:
    steps: list[str] = []

    class Hooks(NoHooks):
        def start(self) -> None:
            steps.append("start")
            raise Cancelled.of("not now")

    with pytest.raises(Cancelled):
        carry("true", files=[new_slow(2, 0, lambda: steps.append("read"))], hooks=Hooks())
    assert steps == ["read", "read", "start"]


def test_a_cancel_ends_the_transfer_and_nothing_starts(carry: Carry) -> None:
    cancel = Cancellation()
    timer = threading.Timer(0.5, cancel.cancel)
    source = new_slow(1000, 0.05, lambda: timer.start() if not timer.is_alive() and not cancel.is_set else None)
    began = time.monotonic()
    outcome = carry("true", files=[source], cancel=cancel).outcome
    assert (outcome.code, outcome.duration) == (ErrorCode.CANCELLED, None)
    assert time.monotonic() - began < 15


def test_a_transfer_has_a_deadline_of_its_own(carry: Carry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FILES_SECONDS", 0.5)
    outcome = carry("true", files=[new_slow(1000, 0.05)]).outcome
    assert outcome.code is ErrorCode.SANDBOX_CREATION_FAILED
    assert outcome.message.startswith("the job's files were not in the sandbox within")


def test_a_source_that_fails_ends_the_job_as_the_hosts_trouble(carry: Carry) -> None:
    def fail() -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(HostResources, match="cannot read the job's file 'a': Permission denied"):
        carry("true", files=[InputFile("a", 5, fail)])
