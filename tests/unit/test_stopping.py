"""The worker knows at once that it was told to stop, whatever the exit code."""

from __future__ import annotations

import pytest
from celery.platforms import EX_FAILURE, EX_OK
from celery.worker import state
from sandfleet_worker.celery_worker.consumer import is_stopping


def test_every_exit_code_that_celery_sets_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = []
    for name in ("should_stop", "should_terminate"):
        for value, expected in ((None, False), (False, False), (EX_OK, True), (EX_FAILURE, True)):
            monkeypatch.setattr(state, name, value)
            if is_stopping() is not expected:
                wrong.append((name, value, expected))
        monkeypatch.setattr(state, name, None)
    assert wrong == []
