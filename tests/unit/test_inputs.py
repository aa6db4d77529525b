"""Files that enter a sandbox: where they may be, how much they may take, how init reads them."""

from __future__ import annotations

import io
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from rows import each_row
from sandfleet_config.errors import HostResources, InternalError, SpecInvalid
from sandfleet_worker.sandbox.process.init_job import END_OF_FILES, InitJob, WritablePath, encode_file_head
from sandfleet_worker.sandbox.process.inputs import InputFile, check_inputs, encode_inputs

MIB = 1 << 20


def new_file(path: str, data: bytes = b"", size: int | None = None, mode: int = 0o644) -> InputFile:
    return InputFile(path, len(data) if size is None else size, lambda: io.BytesIO(data), mode)


def check(*files: InputFile, is_root_writable: bool = False) -> None:
    places = [WritablePath("/tmp"), WritablePath("/work"), WritablePath("/home/app")]
    job = InitJob(["/bin/a"], ["a"], [], 1, 1, disk_bytes=MIB, writable_paths=places, is_root_writable=is_root_writable)
    limits: Any = SimpleNamespace(disk_bytes=MIB, memory_bytes=2 * MIB)
    check_inputs(files, job, limits)


@each_row("path", ["a", "a/b/c", "./a", "/work/a", "/tmp/x/y", "/home/app/.config", "a\nb", "\udcff"])
def test_these_paths_are_inside_writable_folders(path: str) -> None:
    check(new_file(path))


@each_row(
    ("path", "why"),
    [
        ("/etc/passwd", "not inside a writable folder"),
        ("/workshop/a", "not inside a writable folder"),
        ("/work", "is a folder"),
        ("/", "is a folder"),
        ("a/", "is a folder"),
        ("../etc/passwd", "neither"),
        ("/work/../etc/passwd", "neither"),
        ("a\0b", "neither"),
        ("a" * 5000, "longer than 4095 bytes"),
    ],
)
def test_these_paths_are_refused(path: str, why: str) -> None:
    with pytest.raises(SpecInvalid, match=why) as caught:
        check(new_file(path))
    assert caught.value.errors[0]["field"] == "files"


@each_row(("path", "is_allowed"), [("/etc/x", True), ("/proc/x", False), ("/dev/x", False), ("/sys/a/b", False)])
def test_a_writable_root_takes_files_outside_of_the_systems_folders(*, path: str, is_allowed: bool) -> None:
    if is_allowed:
        check(new_file(path), is_root_writable=True)
        return
    with pytest.raises(SpecInvalid, match="the system's own"):
        check(new_file(path), is_root_writable=True)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SpecInvalid) as caught:
        check(new_file("/etc/a"), new_file("b"), new_file("../c"))
    assert len(caught.value.errors) == 2


def test_files_that_do_not_fit_are_refused_with_the_sizes() -> None:
    check(*[new_file(f"f{number}", size=1) for number in range(256)])
    with pytest.raises(SpecInvalid, match=r"1,?.* and resources\.disk_bytes is 1 MiB: raise it"):
        check(*[new_file(f"f{number}", size=1) for number in range(257)])
    with pytest.raises(SpecInvalid) as caught:
        check(new_file("big", size=3 * MIB))
    assert [fault["message"] for fault in caught.value.errors] == [
        "they take 3 MiB, and resources.disk_bytes is 1 MiB: raise it",
        "they take 3 MiB, and resources.memory_bytes is 2 MiB, and files count as memory: raise it",
    ]


def test_files_are_laid_out_as_documented_and_the_start_is_asked_for_last() -> None:
    told: list[str] = []
    stream = encode_inputs([new_file("é", b"abc", mode=0o755), new_file("/tmp/b")], lambda: told.append("end"))
    parts = []
    for part in stream:
        parts.append(part)
        assert bool(told) == (part == END_OF_FILES)
    assert b"".join(parts) == (
        struct.pack("<IIQ", 8, 0o755, 3)
        + "/work/é".encode()
        + b"abc"
        + struct.pack("<IIQ", 6, 0o644, 0)
        + b"/tmp/b"
        + bytes(16)
    )


def test_a_large_file_is_read_in_parts_and_closed() -> None:
    source = io.BytesIO(bytes(MIB + 1))
    parts = list(encode_inputs([InputFile("a", MIB + 1, lambda: source)], lambda: None))
    assert max(map(len, parts)) == 256 << 10
    assert source.closed


def test_a_source_that_is_too_short_or_cannot_be_read_is_no_fault_of_the_job() -> None:
    with pytest.raises(InternalError, match="ended after 3 of 9 bytes"):
        list(encode_inputs([new_file("a", b"abc", size=9)], lambda: None))

    def fail() -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(HostResources, match="cannot read the job's file 'a': Permission denied"):
        list(encode_inputs([InputFile("a", 1, fail)], lambda: None))


def test_a_source_that_is_too_long_is_cut_at_its_size() -> None:
    assert b"".join(encode_inputs([new_file("a", b"abcdef", size=2)], lambda: None)).endswith(b"ab" + bytes(16))


@each_row(("path", "size"), [("a", 0), ("/" + "a" * 4095, 0), ("/a", -1), ("/a", 1 << 64)])
def test_what_init_cannot_read_is_refused(path: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"absolute path|out of range"):
        encode_file_head(path, 0o644, size)
