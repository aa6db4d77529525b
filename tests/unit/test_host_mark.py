"""The mark of a host: what its worker gives back at a drain's deadline, and which marks it reads."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_worker.delivery.host_mark import DRAINED, MAX_TIME, HostMark, Mark, parse_mark

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = 1_700_000_000.0
PAST = b'{"by": "ann", "reason": "a disk", "deadline": 1}'


def new_mark(*running: str) -> tuple[HostMark, list[tuple[list[str], str]]]:
    held: Any = SimpleNamespace(running_job_ids=lambda: list(running), job_ids=lambda: list(running))
    mark, given_back = HostMark(held), list[tuple[list[str], str]]()

    def withdraw(job_ids: Sequence[str], why: str) -> None:
        given_back.append((list(job_ids), why))

    mark.withdraw = withdraw
    return mark, given_back


def test_a_job_that_was_claimed_after_the_mark_was_read_is_left_alone() -> None:
    """Somebody takes the mark away, and a job is claimed, while the answer to a beat is on its way."""
    mark, given_back = new_mark("before", "after")
    mark.note(PAST, NOW, ["before"])
    assert given_back == [(["before"], DRAINED)]
    mark.note(b"", NOW, ["before", "after"])
    assert len(given_back) == 1
    assert mark.state == "up"
    assert mark.limit_pause(2.0) == 2.0


def test_nothing_is_given_back_before_the_deadline_and_again_until_all_are_gone() -> None:
    mark, given_back = new_mark("a")
    mark.note(b'{"deadline": %d}' % (NOW + 1), NOW, ["a"])
    assert (given_back, mark.state) == ([], "draining")
    assert 0 < mark.limit_pause(2.0) <= 1
    for _ in range(2):
        mark.note(b'{"deadline": %d}' % (NOW + 1), NOW + 2, ["a"])
    assert [job_ids for job_ids, _ in given_back] == [["a"], ["a"]]
    assert mark.limit_pause(2.0) == 0.5


@pytest.mark.parametrize(
    "raw",
    [
        *(b"{", b"7", b"[1]", b"\xff", b'{"deadline": "soon"}', b'{"deadline": true}', b'{"deadline": NaN}'),
        *(b'{"deadline": Infinity}', b'{"deadline": %d}' % MAX_TIME, b'{"deadline": %s}' % (b"9" * 4000)),
        *(b'{"by": ' + b"[" * depth + b"]" * depth + b"}" for depth in (500, 950, 990, 2000)),
    ],
)
def test_a_mark_that_cannot_be_read_is_one_without_a_deadline(raw: bytes) -> None:
    found = parse_mark(raw)
    assert found is not None
    assert found.deadline is None


def test_a_mark_is_one_line_in_the_log() -> None:
    found = parse_mark('{"by": "a\\nb", "reason": "\\u202e%s"}'.replace("%s", "x" * 900).encode())
    assert found is not None
    assert found.describe().isprintable()
    assert len(found.describe()) < 500
    assert parse_mark(b"") is None
    assert parse_mark(PAST) == Mark("ann", "a disk", 1.0)
    assert math.isfinite(found.deadline or 0)
