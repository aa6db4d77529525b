"""Signals while ``sandfleet-worker local`` runs, ends and has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sandfleet_worker.commands.local import HANDLED_SIGNALS, _Signals

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_ends_the_stack_and_none_after_it_raises() -> None:
    for number in HANDLED_SIGNALS:
        reached = []
        with _Signals([]):
            try:
                os.kill(os.getpid(), number)
                reached.append("not interrupted")
            finally:
                os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert reached == []


def test_a_signal_while_python_shuts_down_does_not_kill_it() -> None:
    program = """
import os, signal, sys
from sandfleet_worker.commands.local import _Signals
with _Signals([]):
    pass
class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)
sys.late = Late()  # deleted after Python has restored the default handlers
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert ended.returncode == 0
