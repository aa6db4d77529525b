"""Reading and writing a sandbox's pipes without waiting."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from sandfleet_worker.sandbox.process.pipes import Feeder, read_available

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def test_more_than_a_pipe_takes_is_written_in_parts(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    data = os.urandom(300_000)
    feeder, received, is_done = Feeder(writer, data), b"", False
    while not is_done:
        is_done = feeder.feed()
        received += read_available(reader, 1 << 20) or b""
    assert received == data


def test_a_reader_that_closed_its_end_takes_nothing_more(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    feeder = Feeder(writer, b"x" * 300_000)
    assert not feeder.feed()
    os.close(reader)
    assert feeder.feed()


def test_nothing_yet_is_told_from_the_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    assert read_available(reader, 10) is None
    os.write(writer, b"abc")
    assert read_available(reader, 2) == b"ab"
    assert read_available(reader, 10) == b"c"
    os.close(writer)
    assert read_available(reader, 10) == b""
    assert read_available(-1, 10) is None
