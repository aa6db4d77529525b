"""A worker announces its host, also while it cannot be read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sandfleet_worker.delivery.announcer import Announcer, HostFacts
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
