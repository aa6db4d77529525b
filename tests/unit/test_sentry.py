"""The hold on a sandbox's kernel, where the host has no room for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from sandfleet_worker.sandbox import sentry
from sandfleet_worker.sandbox.runsc import SandboxPaths
from sandfleet_worker.sandbox.sentry import Sentry


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESRCH])
def test_a_sentry_that_cannot_be_held_is_none(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """So the sandbox is given up; an error would end the thread that keeps all of them."""

    def refuse(_pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sentry, "find_sentry", lambda _: os.getpid())
    monkeypatch.setattr("sandfleet_worker.sandbox.sentry.os.pidfd_open", refuse)
    assert Sentry.find(SandboxPaths(Path("/nowhere"))) is None
