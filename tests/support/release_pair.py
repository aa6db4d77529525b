"""Producers and workers of one release among two, and jobs whose ends are known."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage import PROGRAM

if TYPE_CHECKING:
    from stage import Stage, Worker

STEPS = Path(__file__).with_name("producer_steps.py")
CONCURRENCY = 3
WORKER_SETTINGS = {"SANDFLEET_LEASE_SECONDS": "2", "SANDFLEET_DRAIN_SECONDS": "1"}
STEP_SECONDS = 120
"""Until a producer's step ends, its own time-outs included."""
MAX_LOG_CHARS = 3000


@dataclass(frozen=True)
class Case:
    """A job and its end."""

    command: list[str]
    code: str
    exit_code: int | None = 0
    stdout: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        return {"image": "busybox", "command": self.command, "timeout": 30, **self.more}


OK = Case(["echo", "hello"], "OK", stdout="hello\n")
CASES = (
    OK,
    Case(["sh", "-c", "echo out; exit 3"], "EXIT_NONZERO", 3, "out\n"),
    Case(["sh", "-c", "exit 137"], "EXIT_NONZERO", 137),
    Case(["sh", "-c", "kill -9 $$"], "SIGNALED", None),
    Case(["sleep", "30"], "TIMEOUT", None, more={"timeout": 1, "grace": 0}),
    Case(["no-such-program"], "COMMAND_NOT_FOUND", None),
    Case(["true"], "IMAGE_NOT_FOUND", None, more={"image": "no-such-image"}),
    Case(["sleep", "1"], "OK", more={"priority": 0, "labels": {"who": "me"}, "max_attempts": 2}),
)


@dataclass(frozen=True)
class Release:
    """One side: its Python, and what its worker needs."""

    name: str
    python: str
    settings: dict[str, str]

    def command(self, stage: Stage, *words: str) -> str:
        """Run the `sandfleet` command of this release; return what it printed."""
        command = [self.python, "-m", "sandfleet.cli", *words]
        env = stage.env_of(self.python)
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=STEP_SECONDS, check=False)
        return f"{done.stdout}{done.stderr}"

    def start(self, stage: Stage) -> Worker:
        """Start a worker of this release and wait until it is ready."""
        stage.python = self.python
        worker = stage.start(CONCURRENCY, PROGRAM, **WORKER_SETTINGS, **self.settings)
        worker.wait_ready()
        return worker


class Producer:
    """A producer of one release, a process of its own."""

    def __init__(self, release: Release, stage: Stage) -> None:
        self.name = release.name
        self._log_path = stage.folder / f"producer-{release.name}.log"
        with self._log_path.open("wb") as log:
            command, env = [release.python, str(STEPS)], stage.env_of(release.python)
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=log)

    def call(self, step: str, **arguments: object) -> Any:
        """Have it do one step; return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([step, arguments]).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            msg = f"{step} of the producer of {self.name} failed: {self._log_path.read_text()[-MAX_LOG_CHARS:]}"
            raise AssertionError(msg)
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def compare(found: list[dict[str, Any]], wanted: dict[str, Case], min_attempts: int) -> list[str]:
    """Say where the outcomes are not those of the jobs, each once."""
    counts = Counter(outcome["job_id"] for outcome in found)
    faults = [f"{job_id} has {counts[job_id]} outcomes" for job_id in wanted if counts[job_id] != 1]
    faults += [f"{job_id} is none of them" for job_id in counts if job_id not in wanted]
    for outcome in found:
        case = wanted.get(outcome["job_id"])
        if case is None:
            continue
        told = (outcome["code"], outcome["exit_code"], outcome["stdout"])
        if told != (case.code, case.exit_code, case.stdout):
            faults.append(f"{case.command} ended as {told}")
        if len(outcome["attempts"]) < min_attempts or (outcome["attempts"] and outcome["attempts"][-1] != case.code):
            faults.append(f"{case.command} tells attempts {outcome['attempts']}")
    return faults
