"""Kills processes by number, and never a later process with the same number."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Processes that are held at once, each by a descriptor."""


def kill_processes(pids: Iterable[int], find_again: Callable[[], Collection[int]]) -> None:
    """SIGKILL those of `pids` that `find_again` still finds.

    Each process is opened as a pidfd before it is looked for again, so a number that was reused
    cannot kill another process. One that may not be signalled is logged; the others are killed all
    the same.
    """
    ordered = sorted(pids)
    for start in range(0, len(ordered), AT_ONCE):
        with contextlib.ExitStack() as opened:
            pidfds: dict[int, int] = {}
            for pid in ordered[start : start + AT_ONCE]:
                # Ended, of another pid namespace (0), or no descriptor is left.
                with contextlib.suppress(OSError, ValueError):
                    pidfds[pid] = os.pidfd_open(pid)
                    opened.callback(os.close, pidfds[pid])
            found = find_again()
            for pid, pidfd in pidfds.items():
                if pid in found:
                    _kill(pid, pidfd)


def _kill(pid: int, pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended
    except OSError as error:
        log.warning("cannot kill process %d: %s", pid, error.strerror, extra={"action": "process_left"})
