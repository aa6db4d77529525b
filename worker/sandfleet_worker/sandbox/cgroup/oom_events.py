"""The OOM notifications of a v1 memory cgroup."""

from __future__ import annotations

import os


def open_oom_eventfd(folder: str) -> int:
    """Return an eventfd that counts the OOMs of a v1 memory cgroup and of its ancestors.

    See cgroup-v1/memory.rst, section 9.
    """
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        oom_control = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            control = os.open(f"{folder}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(control, f"{eventfd} {oom_control}".encode())
            finally:
                os.close(control)
        finally:
            os.close(oom_control)
    except BaseException:
        os.close(eventfd)
        raise
    return eventfd


def read_oom_events(eventfd: int) -> int:
    """Return the OOMs since the last call."""
    try:
        return os.eventfd_read(eventfd)
    except BlockingIOError:
        return 0
