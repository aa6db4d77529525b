"""Worker processes that import before a test asks for one: imports are most of their start."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SPARES = 2
PROGRAM = """
import sandfleet_config.collector
sandfleet_config.collector.pause_collector()
import json, os, runpy, sys
import celery.apps.worker, celery.backends.redis, celery.worker.components, kombu.transport.redis
import sandfleet_worker.celery_worker.backend, sandfleet_worker.celery_worker.consumer, sandfleet_worker.celery_worker.pool
import sandfleet_worker.cli, sandfleet_worker.commands.start
line = sys.stdin.readline()
if not line:
    os._exit(0)  # the tests are over
order = json.loads(line)
os.environ.clear()
os.environ.update(order["env"])
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for stream in (1, 2):
    os.dup2(os.open(order["log"], os.O_WRONLY | os.O_APPEND), stream)
sys.argv = order["arguments"]
if sys.argv[0].endswith(".py"):
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
sandfleet_worker.cli.main()
"""
"""Becomes `sandfleet-worker` with arguments, environment and log of the line that it reads.

A program of a test's own is run in its place.
"""


@dataclass(frozen=True)
class Spare:
    """A process that waits for its arguments, and the environment that it was started with."""

    process: subprocess.Popen[bytes]
    env: dict[str, str]


_spares: list[Spare] = []


def start_worker(arguments: Sequence[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes] | None:
    """Start `arguments`, of which the first is the program, in a spare process.

    Return None if there is none for `env`.

    A library may read its own variables when it is imported or loaded. So a spare is for workers
    whose environment differs from its own in settings of sandfleet only.
    """
    _spares[:] = [spare for spare in _spares if spare.process.poll() is None]  # one ends where an import fails
    spare = next((spare for spare in _spares if spare.env == _own(env)), None)
    if spare is not None:
        _spares.remove(spare)
        log.touch()
        order = {"arguments": list(arguments), "env": env, "log": str(log)}
        assert spare.process.stdin is not None
        with spare.process.stdin as stdin:
            stdin.write(json.dumps(order).encode() + b"\n")
    _fill()
    return None if spare is None else spare.process


def _own(env: dict[str, str]) -> dict[str, str]:
    """Return a worker's environment besides settings; pytest's variable changes with each test."""
    return {key: value for key, value in env.items() if not key.startswith(("SANDFLEET_", "CELERY_", "PYTEST_"))}


def _fill() -> None:
    while len(_spares) < SPARES:
        env = _own(dict(os.environ))
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        _spares.append(Spare(process, env))


@atexit.register
def _end() -> None:
    """End the spares; they end too if this process is killed, since that closes their pipes."""
    for spare in _spares:
        assert spare.process.stdin is not None
        spare.process.stdin.close()
    for spare in _spares:
        spare.process.wait()
