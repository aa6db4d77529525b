"""A worker announces its host, also while it cannot be read."""

from __future__ import annotations

import errno
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from sandfleet_worker.delivery.announcer import Announcer, HostFacts
from sandfleet_worker.delivery.host_report import Measured
from waiting import wait_until


def test_images_that_cannot_be_read_for_a_while_end_no_worker() -> None:
    told: list[str] = []
    failures: list[str] = []
    answers: list[HostFacts | OSError] = [HostFacts("old", ()), PermissionError(13, "images"), HostFacts("new", ("x",))]

    def read() -> HostFacts:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def announce(text: str, *_: object) -> bool:
        told.append(text)
        return True

    ledger: Any = SimpleNamespace(announce=announce)
    announcer = Announcer(ledger, read, failures.append)
    announcer.start()
    try:
        wait_until(lambda: told == ["old", "new"] or failures, 10, "it goes on")
    finally:
        announcer.stop()
    assert failures == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_disk_with_errors_costs_no_worker_and_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """From the first measure on, before which no worker starts; EROFS is what such a disk ends as."""
    monkeypatch.setattr("sandfleet_worker.delivery.announcer.POLL_SECONDS", 0.01)
    monkeypatch.setattr("sandfleet_worker.system.supervised_thread.RESOURCE_TIMEOUT_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    measures: list[int] = []
    failures: list[str] = []
    told: list[str] = []

    def measure() -> Measured:
        measures.append(1)
        if len(measures) < 20:
            raise OSError(number, "the disk")
        return Measured({}, (("python", "sha256:1", 5, 0.0),))

    ledger: Any = SimpleNamespace(announce=lambda *_: True, tell_images=lambda images, _: told.append(images))
    report: Any = SimpleNamespace(measure=measure)
    announcer = Announcer(ledger, lambda: HostFacts("{}", ()), failures.append, report)
    announcer.start()
    try:
        wait_until(lambda: told or failures, 10, "it goes on")
    finally:
        announcer.stop()

    assert failures == []
    actions = [getattr(record, "action", "") for record in caplog.records]
    assert actions == ["host_measures_interrupted", "host_measures_resumed"]
    assert caplog.records[0].levelname == "WARNING"
