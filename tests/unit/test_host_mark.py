"""The mark of a host, and what a worker reports: both bounded, whatever Redis or the settings hold."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from sandfleet_worker.delivery.host_mark import DRAINED, RETRY_SECONDS, HostMark, Mark, parse_mark
from sandfleet_worker.delivery.host_report import MAX_JOBS, MAX_STATUS_BYTES, HostReport, Measured, encode_images

NOW = 1_800_000_000.0
ALL = ("r0", "w0")


class Held:
    """The claims of a worker, as a test says."""

    def __init__(self, running: int = 0, waiting: int = 0) -> None:
        self.running, self.waiting = [f"r{at}" for at in range(running)], [f"w{at}" for at in range(waiting)]

    def job_ids(self) -> list[str]:
        return self.running + self.waiting

    running_job_ids = job_ids

    def waiting_job_ids(self) -> list[str]:
        return self.waiting

    def running_jobs(self) -> list[tuple[str, int, int]]:
        return [(name, at, 1) for at, name in enumerate(self.job_ids())]


def new_mark(held: Any) -> tuple[HostMark, list[tuple[list[str], str]]]:
    mark, given = HostMark(held), list[tuple[list[str], str]]()
    mark.withdraw = lambda ids, why: given.append((list(ids), why))
    return mark, given


def drain_at(deadline: float) -> bytes:
    return json.dumps({"by": "ann", "reason": "why", "deadline": deadline}).encode()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", None),
        (b"{}", Mark()),
        (b"{", Mark()),
        (b"\xff", Mark()),
        (b"[1]", Mark()),
        (b"[" * 5000, Mark()),
        (b'{"by": "ann", "reason": "x", "deadline": 5}', Mark("ann", "x", 5.0)),
        (b'{"deadline": 1e999}', Mark()),
        (b'{"deadline": NaN}', Mark()),
        (b'{"deadline": true}', Mark()),
        (b'{"deadline": "soon"}', Mark()),
        (b'{"deadline": %s}' % (b"9" * 300), Mark()),
        (b'{"by": "\\ud800\\u001b[2J"}', Mark("\\ud800\\x1b[2J")),
    ],
)
def test_a_mark_that_cannot_be_read_is_one_without_a_deadline(raw: bytes, expected: Mark | None) -> None:
    assert parse_mark(raw) == expected


def test_a_cordon_gives_nothing_back() -> None:
    mark, given = new_mark(Held(running=1, waiting=1))
    assert mark.state == "up"
    mark.note(b"{}", NOW, ALL)
    assert (mark.state, given) == ("cordoned", [])
    assert mark.limit_pause(2.0) == 2.0
    mark.note(b"", NOW, ALL)
    assert mark.state == "up"


def test_a_drain_gives_back_all_at_its_deadline_until_nothing_is_left() -> None:
    held = Held(running=1, waiting=1)
    mark, given = new_mark(held)
    mark.note(drain_at(NOW + 1), NOW, ALL)
    assert (mark.state, given) == ("draining", [])
    assert 0.5 < mark.limit_pause(2.0) <= 1.0, "the next beat is at the deadline"
    mark.note(drain_at(NOW + 1), NOW + 1, ALL)
    assert given == [(["r0", "w0"], DRAINED)]
    assert mark.limit_pause(2.0) == RETRY_SECONDS
    mark.note(drain_at(NOW + 1), NOW + 2, ALL)
    assert len(given) == 2, "a job that was handed on just then"
    held.running = held.waiting = []
    mark.note(drain_at(NOW + 1), NOW + 3, ALL)
    assert (mark.state, len(given)) == ("drained", 2)
    assert mark.limit_pause(2.0) == 2.0


def test_a_job_that_was_claimed_after_the_mark_was_read_is_left_alone() -> None:
    """Somebody takes the mark away, and a job is claimed, while the answer to a beat is on its way."""
    mark, given = new_mark(Held(running=2))
    mark.note(drain_at(NOW - 1), NOW, ["r0"])
    assert given == [(["r0"], DRAINED)]
    mark.note(b"", NOW, ["r0", "r1"])
    assert (mark.state, len(given)) == ("up", 1)


def test_a_later_deadline_and_a_cordon_end_the_earlier_one() -> None:
    mark, given = new_mark(Held(running=1))
    mark.note(drain_at(NOW + 1), NOW, ALL)
    mark.note(drain_at(NOW + 100), NOW + 2, ALL)
    mark.note(b"{}", NOW + 200, ALL)
    assert (given, mark.state) == ([], "cordoned")
    assert mark._due_at == math.inf


def test_a_drain_of_an_idle_host_is_done_at_once() -> None:
    mark, _ = new_mark(Held())
    mark.note(drain_at(NOW + 1000), NOW, ALL)
    assert mark.state == "drained"


def test_a_status_is_bounded_and_loses_its_largest_parts_first() -> None:
    fields = {"queues": ["*"], "labels": {}, "slots": 4}
    report = HostReport(lambda: Measured(fields), Held(running=2, waiting=1))  # type: ignore[arg-type]
    report.measure()
    found = json.loads(report.encode_status())
    assert (found["state"], found["running"], found["waiting"], found["slots"]) == ("up", 2, 1, 4)
    assert json.loads(report.encode_status(is_stopping=True))["state"] == "stopping"

    fields |= {"labels": {f"k{at}": "v" * 250 for at in range(32)}}
    report.measure()
    found = json.loads(report.encode_status())
    assert "labels" not in found
    assert found["queues"] == ["*"]
    fields |= {"queues": ["q" * 128] * 50, "runsc": "x" * 5000}
    report.measure()
    assert len(report.encode_status()) <= MAX_STATUS_BYTES


def test_at_most_256_jobs_and_200_images_are_told() -> None:
    held: Any = SimpleNamespace(running_jobs=lambda: [(f"job-{at}", at, 0) for at in range(1000)])
    report = HostReport(lambda: Measured({}), held)
    assert len(json.loads(report.encode_jobs())) == MAX_JOBS
    held.running_jobs = list
    assert report.encode_jobs() == ""
    images = tuple((f"image-{at:03}", "sha256:x", 1, float(at)) for at in range(500))
    names = [image[0] for image in json.loads(encode_images(images))]
    assert names == [f"image-{at:03}" for at in range(300, 500)], "those that were used last"
