"""Which listed files of a sandbox are collected, in which bounds; what is told of the others."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from rows import each_row
from sandfleet_config.errors import HostResources, SpecInvalid
from sandfleet_worker.sandbox.process.artifacts import (
    ArtifactPattern,
    ArtifactRequest,
    CollectedFile,
    Collection,
    CollectLimits,
)
from sandfleet_worker.sandbox.process.collect_channel import LEFT_OUT, REGULAR, CollectionBrokenError, Entry, FileHead
from sandfleet_worker.sandbox.process.collection import collect, is_plain_name

if TYPE_CHECKING:
    from collections.abc import Iterator

FIFO, LINK = 1, 10


class Guest:
    """Answers as init does, from a table of files."""

    def __init__(self, files: dict[str, bytes], others: list[Entry] | None = None) -> None:
        self.files, self.others = files, others or []
        self.asked: list[tuple[str, int, int]] = []
        self.failing: dict[str, int] = {}
        self.opened = ""
        self.checks_left = 10**9

    def list(self, folder: str, most: int, depth: int) -> Iterator[Entry]:
        self.asked.append((folder, most, depth))
        below = folder.removeprefix("/work").strip("/")
        for path in self.files:
            if path.startswith(f"{below}/" if below else ""):
                yield Entry(REGULAR, 0, os.fsencode(path.removeprefix(below).strip("/")))
        yield from self.others

    def open(self, path: str, most: int) -> FileHead:
        self.opened = path.removeprefix("/work/")
        data = self.files[self.opened]
        return FileHead(errno.EFBIG if len(data) > most else 0, 0o640, len(data))

    def read(self) -> Iterator[bytes]:
        yield self.files[self.opened][:2]
        if error := self.failing.get(self.opened):
            raise OSError(error, os.strerror(error))
        yield self.files[self.opened][2:]

    def check(self) -> None:
        self.checks_left -= 1
        if not self.checks_left:
            raise CollectionBrokenError("the collection took longer than 60 s")


class Sink:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.dropped: list[str] = []
        self.path, self.data = "", b""
        self.failure: Exception | None = None

    def begin(self, path: str, size: int, mode: int) -> None:
        del size, mode
        self.path, self.data = path, b""

    def write(self, chunk: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        self.data += chunk

    def end(self) -> None:
        self.files[self.path] = self.data

    def drop(self) -> None:
        self.dropped.append(self.path)


def run(guest: Guest, *patterns: str | ArtifactPattern, sink: Sink | None = None, **limits: Any) -> Collection:
    asked = [ArtifactPattern(pattern) if isinstance(pattern, str) else pattern for pattern in patterns]
    request = ArtifactRequest(asked, sink or Sink(), CollectLimits(**limits))
    channel: Any = guest
    return collect(channel, request, asked)


def test_files_come_once_and_in_order_with_size_and_mode() -> None:
    sink = Sink()
    guest = Guest({"out/b": b"bb", "out/a": b"a", "c": b""})
    assert run(guest, "out/*", "/work/out/a", "**", sink=sink) == Collection(
        (CollectedFile("c", 0, 0o640), CollectedFile("out/a", 1, 0o640), CollectedFile("out/b", 2, 0o640)), ""
    )
    assert sink.files == {"c": b"", "out/a": b"a", "out/b": b"bb"}
    assert [(folder, depth) for folder, _, depth in guest.asked] == [("/work/out", 1), ("/work", 64)]


def test_a_file_that_two_patterns_name_gets_the_larger_bound() -> None:
    patterns = [ArtifactPattern("a", max_bytes=1), ArtifactPattern("*", max_bytes=3)]
    assert run(Guest({"a": b"abc"}), *patterns).lost == ""
    assert (
        run(Guest({"a": b"abcd"}), *patterns).lost
        == "0 of 1 file was collected: a: has 4 bytes, more than 3 bytes (max_bytes of its pattern)"
    )


@each_row(
    ("limits", "paths", "lost"),
    [
        (
            {"max_files": 2},
            ["a", "b"],
            "at most 2 files are collected (SANDFLEET_POLICY__ARTIFACT_FILES)",
        ),
        (
            {"max_file_bytes": 3},
            ["a", "b"],
            "c: has 4 bytes, more than 3 bytes (SANDFLEET_POLICY__ARTIFACT_BYTES)",
        ),
        (
            {"max_total_bytes": 6},
            ["a", "b"],
            "c: has 4 bytes, more than is left of 6 bytes for all files (SANDFLEET_POLICY__ARTIFACTS_BYTES)",
        ),
    ],
)
def test_the_bounds_hold_and_what_fits_still_comes(limits: dict[str, Any], paths: list[str], lost: str) -> None:
    collection = run(Guest({"a": b"a", "b": b"bb", "c": b"cccc"}), "*", **limits)
    assert [file.path for file in collection.files] == paths
    assert collection.lost == f"2 of 3 files were collected: {lost}"


def test_the_paths_take_no_more_memory_than_their_bound() -> None:
    files = {f"{number:05}{'x' * 2000}": b"" for number in range(9000)}
    collection = run(Guest(files), "*", max_files=1)
    assert len(collection.files) == 1
    assert "the paths of the files take more than 16 MiB; the others were not looked at" in collection.lost
    assert collection.lost.startswith("1 of 83")


def test_the_paths_of_what_comes_are_bounded() -> None:
    collection = run(Guest({f"{number:05}{'x' * 4000}": b"" for number in range(300)}), "*")
    assert sum(len(file.path) for file in collection.files) <= 1 << 20
    assert collection.lost == (
        "261 of 300 files were collected: the paths of the files are longer than 1 MiB together: shorten them"
    )


def test_only_plain_files_with_plain_names_come() -> None:
    others = [Entry(FIFO, 0, b"fifo"), Entry(LINK, 0, b"link"), Entry(REGULAR, 0, b"a\nb"), Entry(REGULAR, 0, b"\xff")]
    collection = run(Guest({"a": b"a"}, others), "*")
    assert [file.path for file in collection.files] == ["a"]
    assert "link: a symbolic link is never collected" in collection.lost
    assert "'a\\nb': its name has control characters" in collection.lost
    assert run(Guest({"a": b"a"}, others), "a").lost == "", "nobody asked for them"


@each_row(
    ("name", "is_plain"),
    [("a b", True), ("é中😀", True), ("שלום", True), ("a\u202eb", False), ("a\x1b", False), ("\u2028", False)],
)
def test_a_name_that_could_forge_a_line_is_not_plain(*, name: str, is_plain: bool) -> None:
    assert is_plain_name(name) == is_plain


def test_folders_that_were_left_out_are_told() -> None:
    others = [
        Entry(LEFT_OUT, errno.E2BIG, b"deep"),
        Entry(LEFT_OUT, errno.EACCES, b"x"),
        Entry(LEFT_OUT, errno.E2BIG, b""),
    ]
    assert run(Guest({}, others), "*", max_entries=7).lost == (
        "deep: folders are searched 64 deep; those below were not looked at; x: cannot be searched: Permission denied; "
        "/work: there are more than 7 files and folders; the others were not looked at"
    )
    assert run(Guest({}, [Entry(LEFT_OUT, errno.ENOENT, b"")]), "out/*").lost == "", "the job wrote nothing"


def test_many_losses_are_counted() -> None:
    collection = run(Guest({f"f{number:03}": b"abc" for number in range(100)}), "*", max_file_bytes=1)
    assert collection.lost.endswith("; and 95 more")
    assert len(collection.lost) < 500


def test_a_file_that_got_shorter_is_dropped_and_the_others_come() -> None:
    guest, sink = Guest({"a": b"aaa", "b": b"bbb"}), Sink()
    guest.failing["a"] = errno.ENODATA
    collection = run(guest, "*", sink=sink)
    assert [file.path for file in collection.files] == ["b"]
    assert collection.lost == "1 of 2 files were collected: a: No data available"
    assert sink.dropped == ["a"]


@each_row(
    ("failure", "lost"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the worker's host cannot keep them: No space left on device",
        ),
        (HostResources.of("the spool is full"), "the spool is full"),
        (CollectionBrokenError("the sandbox ended"), "the sandbox ended"),
    ],
)
def test_a_sink_that_fails_ends_the_collection(failure: Exception, lost: str) -> None:
    sink = Sink()
    sink.failure = failure
    collection = run(Guest({"a": b"a", "b": b"b"}), "*", sink=sink)
    assert collection == Collection((), f"0 of 2 files were collected: {lost}")
    assert sink.dropped == ["a"]


def test_the_time_is_checked_while_patterns_are_matched() -> None:
    guest = Guest({f"{number}": b"" for number in range(1000)})
    guest.checks_left = 3
    assert run(guest, "*").lost == "the collection took longer than 60 s"


@each_row("glob", ["/etc/passwd", "../x", "/work/../etc/x", "/tmp/a"])
def test_a_pattern_outside_of_work_is_refused(glob: str) -> None:
    with pytest.raises(SpecInvalid, match="artifacts: "):
        ArtifactRequest([ArtifactPattern(glob)], Sink()).check()


def test_patterns_count_after_the_end_that_they_name() -> None:
    patterns = [ArtifactPattern(when, when=when) for when in ("always", "ok", "failed")]
    request = ArtifactRequest(patterns, Sink())
    assert [pattern.glob for pattern in request.select(is_ok=True)] == ["always", "ok"]
    assert [pattern.glob for pattern in request.select(is_ok=False)] == ["always", "failed"]
