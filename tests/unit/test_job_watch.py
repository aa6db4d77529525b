"""A notice counts as a job's outcome only where it can be of nothing but the job's newest run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandfleet.channel.waker import Waker
from sandfleet.channel.watches import JobWatch
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.scripts import stored_result

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

JOB = "66c772d1-4bc8-454b-919c-4ec2c5a7054a"


class Service:
    """Serves watches that are told by hand."""

    def has(self, watch: Any, /) -> bool:
        return watch is not None

    def ask(self, request: Callable[[Any], None], /) -> None: ...

    def raise_error(self, error: Exception | None, /) -> None: ...

    def drop(self, watch: Any, /) -> None: ...


def new_outcome(job_id: str = JOB) -> Outcome:
    return Outcome.of(ErrorCode.EXIT_NONZERO, job_id, "the program exited 3", exit_code=3)


def notice_of(job_id: str = JOB) -> bytes:
    return stored_result(new_outcome(job_id)).encode()


def begin(job_id: str = JOB) -> JobWatch:
    """Return a watch whose subscription has begun."""
    watch = JobWatch(Service(), [job_id], Waker())
    watch.add_all()
    assert watch.take() is None
    return watch


def test_a_fresh_notice_is_the_outcome() -> None:
    watch = begin()
    watch.add(JOB, notice_of())
    assert watch.take() == {JOB: new_outcome()}
    assert watch.take() == {}


def test_a_notice_from_before_the_subscription_has_begun_is_asked_for() -> None:
    """Another wait of the process has subscribed before: it may be of the run before a retry."""
    watch = JobWatch(Service(), [JOB], Waker())
    watch.add(JOB, notice_of())
    assert watch.take() == {JOB: None}


def test_a_notice_that_waited_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever iterates is slow, and a person may have run the job again meanwhile."""
    watch = begin()
    monkeypatch.setattr("sandfleet.channel.watches.FRESH_SECONDS", -1.0)
    watch.add(JOB, notice_of())
    assert watch.take() == {JOB: None}


def test_the_notice_of_a_job_that_was_given_its_id_is_asked_for() -> None:
    """Another fleet, on another database of the same Redis, may have a job of that id."""
    watch = begin("nightly-7")
    watch.add("nightly-7", notice_of("nightly-7"))
    assert watch.take() == {"nightly-7": None}


def test_a_notice_of_another_job_is_asked_for() -> None:
    watch = begin()
    watch.add(JOB, notice_of("66c772d1-4bc8-454b-919c-4ec2c5a7054b"))
    assert watch.take() == {JOB: None}
