"""The worker takes no more of init's answers than it has asked for, after a job's end."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest
from rows import each_row
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.collect_channel import CollectChannel, CollectionBrokenError, Entry, FileHead
from sandfleet_worker.sandbox.process.pipes import Pipes

if TYPE_CHECKING:
    from collections.abc import Iterator

END = struct.pack("<BII", ord("."), 0, 0)


class Guest:
    """The other ends of both pipes."""

    def __init__(self) -> None:
        self.control, control = os.pipe()
        status, self.status = os.pipe()
        for fd in (control, status):
            os.set_blocking(fd, False)
        self.pipes = Pipes(control, status, -1, -1, -1)
        self.channel = CollectChannel(self.pipes, Cancellation(), 5.0)

    def say(self, *answers: bytes) -> None:
        os.write(self.status, b"".join(answers))


@contextlib.contextmanager
def open_guest() -> Iterator[Guest]:
    opened = Guest()
    yield opened
    opened.channel.close()
    opened.pipes.close_all()
    os.close(opened.control)
    os.close(opened.status)


def entry(path: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BII", 8, 0, len(path) if length is None else length) + path


def part(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


@pytest.fixture
def guest() -> Iterator[Guest]:
    with open_guest() as opened:
        yield opened


def test_what_was_asked_for_is_taken(guest: Guest) -> None:
    guest.say(entry(b"a"), entry(b"b/c"), END)
    assert list(guest.channel.list("/work", 2, 64)) == [Entry(8, 0, b"a"), Entry(8, 0, b"b/c")]
    guest.say(struct.pack("<IIQ", 0, 0o644, 3), part(b"ab"), part(b"c"), part(b""), struct.pack("<I", 0))
    assert guest.channel.open("/work/a", 3) == FileHead(0, 0o644, 3)
    assert b"".join(guest.channel.read()) == b"abc"
    guest.say(struct.pack("<IIQ", errno.EFBIG, 0o644, 1 << 40))
    assert guest.channel.open("/work/b/c", 3).size == 1 << 40
    guest.say(struct.pack("<IIQ", 0, 0o644, 3), part(b"ab"), part(b""), struct.pack("<I", errno.ENODATA))
    guest.channel.open("/work/a", 3)
    with pytest.raises(OSError, match="No data"):
        list(guest.channel.read())


@each_row(
    ("answer",),
    [(entry(b"a") * 8 + END,), (entry(b"", 1 << 31),)],
)
def test_a_listing_that_is_longer_than_any_ends_the_collection(answer: bytes) -> None:
    with open_guest() as guest:
        guest.say(answer)
        with pytest.raises(CollectionBrokenError, match="not trusted"):
            list(guest.channel.list("/work", 1, 64))


@each_row(
    ("size", "parts"),
    [(4, b""), (3, part(b"abcd")), (3, part(b"ab") + part(b"cd")), (3, part(b"ab") + part(b"") + struct.pack("<I", 0))],
)
def test_a_file_of_another_size_ends_the_collection(size: int, parts: bytes) -> None:
    with open_guest() as guest:
        guest.say(struct.pack("<IIQ", 0, 0o644, size), parts)
        with pytest.raises(CollectionBrokenError, match="not trusted"):
            _ = guest.channel.open("/work/a", 3), list(guest.channel.read())
