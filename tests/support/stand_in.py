"""A worker without sandboxes, for tests of the producer: stock Celery, and endings played from a script.

Run as ``celery -A stand_in worker``; it reads ``SANDFLEET_*`` as the real one does.
"""

from __future__ import annotations

import time
from typing import Any

import redis
from celery import Celery
from sandfleet_config.celery import shared_options
from sandfleet_config.errors import Cancelled, CommandNotFound, ErrorCode, SandboxError, Signaled
from sandfleet_config.outcome import Outcome, SandboxResult, StreamOutput
from sandfleet_config.queues import TASK_NAME, cancel_key
from sandfleet_config.settings import Settings
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import decode_job, spec_sha256

LONG_SECONDS = 30.0
LOOK_SECONDS = 0.02
IMAGE = "busybox"


def shell(code: str, **fields: Any) -> SandboxSpec:
    return SandboxSpec.model_validate({"image": IMAGE, "command": ["sh", "-c", code], "timeout": 20, **fields})


HELLO = shell("echo hello", labels={"name": "hello"})
EXIT_3 = shell("exit 3")
KILLED = shell("kill -9 $$")
MISSING = SandboxSpec(image=IMAGE, command=["/no/such/program"], timeout=20)
LONG = shell("sleep 60", timeout=60)


def play(spec: SandboxSpec) -> SandboxResult | SandboxError | None:
    """End a spec of this suite as a sandbox would; None is a job that runs on."""
    match spec.command:
        case ("sh", "-c", "echo hello"):
            return SandboxResult(exit_code=0, stdout="hello\n", stderr="", duration=0.01)
        case ("sh", "-c", "exit 3"):
            return SandboxResult(exit_code=3, stdout="", stderr="", duration=0.01)
        case ("sh", "-c", "kill -9 $$"):
            return Signaled.of("by signal 9", Outcome.of(ErrorCode.SIGNALED, "", "by signal 9", signal=9).to_json())
        case ("/no/such/program",):
            return CommandNotFound.of("/no/such/program is not in the image")
        case _:
            return None


app = Celery("stand-in", set_as_current=False)


@app.on_configure.connect
def _configure(**_: Any) -> None:
    app.conf.update(shared_options(Settings()))


@app.task(name=TASK_NAME, bind=True, throws=(SandboxError,))
def run(self: Any, text: str) -> dict[str, Any]:
    """End the job as `play` says, and return or raise what the real task does."""
    request = decode_job(text)
    job_id = self.request.id
    ending = play(request.spec)
    if ending is None:
        ending = _wait_for_cancel(job_id)
    known: dict[str, Any] = {
        "batch": request.batch,
        "labels": request.spec.labels,
        "spec_sha256": spec_sha256(request.spec),
    }
    if isinstance(ending, SandboxError):
        signal = ending.outcome.signal if ending.outcome else None
        outcome = Outcome.of(ending.code, job_id, ending.message, signal=signal, **known)
        raise type(ending).of(ending.message, outcome.to_json())
    return Outcome.of(
        ErrorCode.EXIT_NONZERO if ending.exit_code else ErrorCode.OK,
        job_id,
        exit_code=ending.exit_code,
        stdout=StreamOutput.of(ending.stdout.encode()),
        duration=ending.duration,
        **known,
    ).to_json()


def _wait_for_cancel(job_id: str) -> SandboxError:
    deadline = time.monotonic() + LONG_SECONDS
    with redis.Redis.from_url(Settings().redis_dsn) as client:
        while time.monotonic() < deadline:
            if client.exists(cancel_key(job_id)):
                return Cancelled.of("the job was cancelled")
            time.sleep(LOOK_SECONDS)
    return Cancelled.of("nobody cancelled the job")
