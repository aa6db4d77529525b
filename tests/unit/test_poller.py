"""Handlers of descriptors that are ready."""

from __future__ import annotations

import functools
import os

from sandfleet_worker.sandbox.process.poller import WRITE, Poller


def test_the_handler_of_a_ready_descriptor_is_called() -> None:
    poller, called = Poller(), list[str]()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    poller.register(reader, lambda: called.append("read"))
    assert not poller.wait(0.0)
    poller.register(writer, lambda: called.append("write"), WRITE)
    assert poller.wait(None)
    assert called == ["write"]
    poller.unregister(writer)
    os.close(writer)
    assert poller.wait(1.0), "the end of file is an event"
    assert called == ["write", "read"]
    poller.unregister(reader)
    assert not poller.wait(0.0)
    poller.close()
    os.close(reader)


def test_a_handler_that_was_unregistered_meanwhile_is_not_called() -> None:
    poller, called = Poller(), list[int]()
    ends = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)

    def handle(number: int) -> None:
        called.append(number)
        poller.unregister(ends[1 - number][0])

    for number, (reader, writer) in enumerate(ends):
        poller.register(reader, functools.partial(handle, number))
        os.write(writer, b"x")
    assert poller.wait(1.0)
    assert len(called) == 1
    poller.close()
    for end in (*ends[0], *ends[1]):
        os.close(end)
