from __future__ import annotations

import struct
from typing import Any

import pytest
from rows import each_row
from sandfleet_worker.sandbox.process.init_job import (
    MAX_MESSAGE_BYTES,
    InitJob,
    Rlimit,
    WritablePath,
    encode_job,
    exec_candidates,
)
from sandfleet_worker.sandbox.process.init_reports import (
    MAX_REPORT_BYTES,
    ChdirFailed,
    ExecFailed,
    Exited,
    FileFailed,
    Killed,
    MountFailed,
    ProtocolFault,
    Ready,
    Report,
    RlimitFailed,
    Signaled,
    Started,
    StatusParser,
    UserFailed,
    parse_report,
)


def new_job(**fields: Any) -> InitJob:
    known: dict[str, Any] = {"candidates": ["/bin/a"], "argv": ["a"], "envp": [], "uid": 1, "gid": 2}
    return InitJob(**(known | fields))


def test_a_job_is_laid_out_as_documented() -> None:
    job = new_job(
        argv=["a", "é"],
        envp=["A=1"],
        groups=[7],
        rlimits=[Rlimit(6, 10, 20)],
        writable_paths=[WritablePath("/tmp", 0o1777)],
        disk_bytes=4096,
        cwd="/w",
    )
    body = (
        b"SFJ2"
        + struct.pack("<IIIQ", 0, 1, 2, 4096)
        + struct.pack("<II", 1, 7)
        + struct.pack("<IIQQ", 1, 6, 10, 20)
        + struct.pack("<II", 1, 0o1777)
        + b"/tmp\0"
        + b"/w\0"
        + struct.pack("<I", 1)
        + b"/bin/a\0"
        + struct.pack("<I", 2)
        + b"a\0\xc3\xa9\0"
        + struct.pack("<I", 1)
        + b"A=1\0"
    )
    assert encode_job(job) == struct.pack("<I", len(body)) + body


@each_row(
    ("fields", "flags"),
    [
        ({}, 0),
        ({"has_files": True}, 2),
        ({"has_artifacts": True}, 4),
        ({"has_files": True, "has_artifacts": True, "is_root_writable": True}, 7),
    ],
)
def test_flags_say_what_follows_the_message(fields: dict[str, bool], flags: int) -> None:
    job = new_job(writable_paths=[WritablePath("/tmp")], disk_bytes=4096, **fields)
    assert struct.unpack_from("<I", encode_job(job), 8) == (flags,)


@each_row(
    ("fields", "message"),
    [
        ({"argv": []}, "no command"),
        ({"candidates": []}, "no command"),
        ({"argv": ["a\0b"]}, "zero byte"),
        ({"cwd": "/\0"}, "zero byte"),
        ({"argv": ["x" * MAX_MESSAGE_BYTES]}, r"take 1048634 bytes .*; 1 MiB are possible: pass large data as a file"),
        ({"envp": ["x"] * (1 << 17)}, r"131074 entries .*; 131069 are possible"),
        ({"uid": -1}, "out of range"),
        ({"uid": 2**32}, "out of range"),
        ({"uid": 2**32 - 1}, "unchanged"),
        ({"gid": 2**32 - 1}, "unchanged"),
        ({"groups": [2**32 - 1]}, "unchanged"),
        ({"groups": [1] * 65}, "65 groups"),
        ({"rlimits": [Rlimit(1, 1, 1)] * 17}, "17 rlimits"),
        ({"rlimits": [Rlimit(1, -1, 1)]}, "out of range"),
        ({"writable_paths": [WritablePath("/tmp")]}, "need disk_bytes"),
        ({"is_root_writable": True}, "needs a writable path"),
        ({"is_root_writable": True, "writable_paths": [WritablePath("/a,b")], "disk_bytes": 1}, "no comma"),
        *(
            ({"writable_paths": [WritablePath(path)], "disk_bytes": 1}, "not an absolute, normal path")
            for path in ("/", "tmp", "/tmp/", "/a/../b", "//a", "")
        ),
        ({"writable_paths": [WritablePath("/a"), WritablePath("/a/b")], "disk_bytes": 1}, "lies in another"),
        ({"writable_paths": [WritablePath("/a"), WritablePath("/a")], "disk_bytes": 1}, "lies in another"),
    ],
)
def test_a_job_that_cannot_be_said_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_job(new_job(**fields))


def test_a_writable_root_has_a_flag() -> None:
    disk: dict[str, Any] = {"writable_paths": [WritablePath("/tmp")], "disk_bytes": 1}
    assert [encode_job(new_job(**disk, is_root_writable=root))[8] for root in (False, True)] == [0, 1]


def test_neighbours_with_a_common_beginning_are_fine() -> None:
    paths = [WritablePath("/a"), WritablePath("/ab")]
    assert b"/ab\0" in encode_job(new_job(writable_paths=paths, disk_bytes=1))


def test_bytes_that_are_no_utf8_survive() -> None:
    assert b"\xff\0" in encode_job(new_job(argv=["\udcff"]))


@pytest.mark.parametrize(
    ("command", "path", "candidates"),
    [
        ("ls", "/bin:/usr/bin", ["/bin/ls", "/usr/bin/ls"]),
        ("ls", ":/bin:", ["ls", "/bin/ls", "ls"]),
        ("ls", "", ["ls"]),
        ("/bin/ls", "/usr/bin", ["/bin/ls"]),
        ("./ls", "/usr/bin", ["./ls"]),
        ("", "/bin", []),
    ],
)
def test_path_is_searched_as_execvp_does(command: str, path: str, candidates: list[str]) -> None:
    assert exec_candidates(command, path) == candidates


@each_row(
    ("line", "report"),
    [
        (b"R", Ready()),
        (b"S", Started()),
        (b"E 0 0 17", Exited(0, disk_full=False)),
        (b"E 255 1 0", Exited(255, disk_full=True)),
        (b"G 9 0 1", Signaled(9, disk_full=False)),
        (b"X 2 1", ExecFailed(2, path_exists=True)),
        (b"X 13 0", ExecFailed(13, path_exists=False)),
        (b"C 2", ChdirFailed(2)),
        (b"U 22", UserFailed(22)),
        (b"M 2 3", MountFailed(2, 3)),
        (b"F 28 1023", FileFailed(28, 1023)),
        (b"K", Killed()),
        (b"L 1 7", RlimitFailed(1, 7)),
        (b"P 2", ProtocolFault(2)),
        *(
            (line, ProtocolFault(0))
            for line in (
                b"",
                b"Z",
                b"R ",
                b"E 0",
                b"E 0 2 1",
                b"E 0 0",
                b"E  0 0 1",
                b"E -1 0 1",
                b"E 1 0 0 0",
                b"\xff",
                b"E 1 0\r",
            )
        ),
    ],
)
def test_every_line_is_read(line: bytes, report: Report) -> None:
    assert parse_report(line) == report
    assert parse_report(line + b"\n") == report


def test_split_and_joined_lines_are_cut_right() -> None:
    whole = b"R\nS\nE 137 0 5\n"
    expected = [Ready(), Started(), Exited(137, disk_full=False)]
    for size in range(1, len(whole) + 1):
        parser = StatusParser()
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [report for piece in pieces for report in parser.feed(piece)] == expected


def test_an_unfinished_line_is_no_report() -> None:
    assert StatusParser().feed(b"E 0 0 1") == []


def test_an_endless_line_is_a_fault_and_is_forgotten() -> None:
    parser = StatusParser()
    assert parser.feed(b"x" * MAX_REPORT_BYTES) == []
    assert parser.feed(b"x") == [ProtocolFault(0)]
    assert parser.feed(b"R\n") == [Ready()]
