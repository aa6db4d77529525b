"""Attacks in Python, as nobody and as uid 0 by policy; conftest.py offers the fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from conftest import Run
    from sandfleet_config.outcome import Outcome
    from sandfleet_config.settings import HostSettings

SECRET = "a-marker-that-only-the-host-knows"
WRITABLE = {"read_only_rootfs": False}
REFUSED = {"EPERM", "EACCES", "ENOSYS", "EROFS"}

PRELUDE = """
import ctypes, errno, os, signal, socket, stat, sys
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    ctypes.set_errno(0)
    result = getattr(libc, name)(*arguments)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "done"

def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"

def tell(name, answer):
    print(name, answer, flush=True)
"""


USERS = ("nobody", "root")


class Attack(Protocol):
    """Run Python code, with PRELUDE before it, in image `python`."""

    def __call__(self, code: str, **fields: Any) -> Outcome: ...


@pytest.fixture
def attack(request: pytest.FixtureRequest, host: HostSettings) -> Attack:
    """Return a function that attacks as that user."""
    run: Run = request.getfixturevalue("run" if request.param == "nobody" else "run_as_root")

    def run_code(code: str, **fields: Any) -> Outcome:
        return run("python3", "-c", PRELUDE + code, **({"image": "python"} | fields))

    return run_code


def answers(outcome: Outcome) -> dict[str, str]:
    """Return what `tell` told; nothing told at all would be a test that cannot fail."""
    assert outcome.stdout.text, outcome.stderr.text
    return dict(line.split(" ", 1) for line in outcome.stdout.text.splitlines())
