"""The deadlines of one sandbox, and why it is killed when one has passed."""

from __future__ import annotations

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_worker.sandbox.process.deadlines import Deadline, Deadlines, new_kill


def test_due_ones_come_in_order_and_once() -> None:
    deadlines = Deadlines()
    assert deadlines.next is None
    deadlines.set(Deadline.HARD, 3.0)
    deadlines.set(Deadline.SOFT, 2.0)
    deadlines.set(Deadline.CALLER, 9.0)
    assert deadlines.next == 2.0
    assert list(deadlines.take_due(1.9)) == []
    assert list(deadlines.take_due(3.0)) == [Deadline.SOFT, Deadline.HARD]
    assert list(deadlines.take_due(3.0)) == []
    assert deadlines.next == 9.0


def test_one_that_is_dropped_or_moved_meanwhile_does_not_come() -> None:
    deadlines = Deadlines()
    deadlines.set(Deadline.SOFT, 1.0)
    deadlines.set(Deadline.HARD, 2.0)
    due = deadlines.take_due(5.0)
    assert next(due) is Deadline.SOFT
    deadlines.set_only(Deadline.END, 15.0)
    assert list(due) == []
    assert deadlines.next == 15.0


def test_only_one_is_kept() -> None:
    deadlines = Deadlines()
    deadlines.set(Deadline.BOOT, 1.0)
    deadlines.keep_only(Deadline.CALLER)
    assert deadlines.next is None
    deadlines.set(Deadline.CALLER, 2.0)
    deadlines.set(Deadline.BOOT, 1.0)
    deadlines.keep_only(Deadline.CALLER)
    assert deadlines.next == 2.0


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        (Deadline.BOOT, ErrorCode.GVISOR_NOT_AVAILABLE, "platform kvm did not boot a sandbox within 30 s"),
        (Deadline.FILES, ErrorCode.SANDBOX_CREATION_FAILED, "the job's files were not in the sandbox within 120 s"),
        (Deadline.START, ErrorCode.SANDBOX_CREATION_FAILED, "did not start within 30 s"),
        (Deadline.CALLER, ErrorCode.TIMEOUT, "the caller's deadline passed"),
    ],
)
def test_the_kill_says_which_deadline_passed(name: Deadline, code: ErrorCode, text: str) -> None:
    kill = new_kill(name, "kvm", 30.0, None)
    assert kill.code is code
    assert text in kill.message
