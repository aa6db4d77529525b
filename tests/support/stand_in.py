"""A worker without sandboxes: it claims jobs and ends them as a test says.

It records the ends through the shared script.
"""

from __future__ import annotations

import base64
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import redis
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import Cancelled, CommandNotFound, GVisorNotAvailable, SandboxError, Signaled
from sandfleet_config.fingerprint import spec_sha256
from sandfleet_config.outcome import Attempt, Outcome, SandboxResult, StreamOutput
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, cancel_key, job_key
from sandfleet_config.scripts import DEAD_TTL_SECONDS, PRIORITY_STEPS, read_script, stored_result
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import decode_job

if TYPE_CHECKING:
    from sandfleet_config.wire import JobRequest

OWNER = "stand-in"
RESULT_TTL_SECONDS = 3600
LOOK_SECONDS = 0.05
"""How often it looks whether it shall end; a job is taken at once."""
CLAIM = """
if redis.call('HGET', KEYS[1], 'state') ~= 'queued' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'running')
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
"""


def list_keys(queue: str = DEFAULT_QUEUE) -> list[str]:
    """Return a queue's lists in kombu's order."""
    return [f"{KEY_PREFIX}{queue}" + (f"\x06\x16{step}" if step else "") for step in PRIORITY_STEPS]


IMAGE = "busybox"


def shell(code: str, **fields: Any) -> SandboxSpec:
    return SandboxSpec.model_validate({"image": IMAGE, "command": ["sh", "-c", code], "timeout": 20, **fields})


HELLO = shell("echo hello", labels={"name": "hello"})
EXIT_3 = shell("exit 3")
KILLED = shell("kill -9 $$")
MISSING = SandboxSpec(image=IMAGE, command=["/no/such/program"], timeout=20)
LONG = shell("sleep 60", timeout=60)
BROKEN = SandboxSpec(image=IMAGE, command=["broken-host"], timeout=20)
"""Ends on a host that cannot run it; of the stand-ins only."""


def play(spec: SandboxSpec) -> SandboxResult | SandboxError | None:
    """End a spec of this suite as a sandbox would; None is a job that runs on."""
    match spec.command:
        case ("sh", "-c", "echo hello"):
            return SandboxResult(exit_code=0, stdout="hello\n", stderr="", duration=0.01)
        case ("sh", "-c", "exit 3"):
            return SandboxResult(exit_code=3, stdout="", stderr="", duration=0.01)
        case ("sh", "-c", "kill -9 $$"):
            return Signaled.of("by signal 9", Outcome.of(ErrorCode.SIGNALED, "", "by signal 9", signal=9).to_json())
        case ("broken-host",):
            return GVisorNotAvailable.of("no runsc")
        case ("/no/such/program",):
            return CommandNotFound.of("/no/such/program is not in the image")
        case _:
            return None


class StandIn:
    """Takes jobs of the queue as a worker would, in threads, and ends them as `play` says."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url, protocol=2)
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._thread = threading.Thread(target=self._take)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._pool.shutdown()
        self._client.close()

    def _take(self) -> None:
        while not self._stopped.is_set():
            popped = self._client.brpop(list_keys(), timeout=LOOK_SECONDS)
            if popped is None:
                continue
            found = popped[1]
            job_id, claim = json.loads(found)["headers"]["id"], str(uuid.uuid4())
            if self._client.eval(CLAIM, 2, job_key(job_id), f"{KEY_PREFIX}claims:{OWNER}", claim, found):
                self._pool.submit(self._run, job_id, claim, found)

    def _run(self, job_id: str, claim: str, raw: bytes) -> None:
        (text,), _, _ = json.loads(base64.b64decode(json.loads(raw)["body"]))
        request = decode_job(text)
        attempts: list[Attempt] = []
        while True:
            started = datetime.now(UTC)
            outcome = self._end(job_id, request)
            attempts.append(Attempt(host="h", worker="w", code=outcome.code, started=started))
            is_failure = outcome.code in request.spec.retry_on
            if not is_failure or len(attempts) >= request.spec.max_attempts:
                break
        run = int(self._client.hget(job_key(job_id), "run") or 1)
        outcome = outcome.model_copy(update={"attempts": tuple(attempts), "run": run})
        history = outcome.to_json()["attempts"]
        self._client.hset(job_key(job_id), "attempts", json.dumps(history))
        reason = "no attempt is left" if is_failure else ""
        arguments = (KEY_PREFIX, OWNER, claim, job_id, outcome.code.value, stored_result(outcome))
        self._client.eval(read_script("finish"), 0, *arguments, RESULT_TTL_SECONDS, reason, DEAD_TTL_SECONDS)

    def _end(self, job_id: str, request: JobRequest) -> Outcome:
        ending: SandboxResult | SandboxError | None = play(request.spec)
        while ending is None and not self._stopped.wait(0.01):
            if self._client.exists(cancel_key(job_id)):
                ending = Cancelled.of("the job was cancelled")
        known: dict[str, Any] = {"batch": request.batch, "labels": request.spec.labels}
        known["spec_sha256"] = spec_sha256(request.spec)
        if ending is None:
            ending = Cancelled.of("the test is over")
        if isinstance(ending, SandboxError):
            signal = ending.outcome.signal if ending.outcome else None
            return Outcome.of(ending.code, job_id, ending.message, signal=signal, **known)
        code = ErrorCode.EXIT_NONZERO if ending.exit_code else ErrorCode.OK
        stdout = StreamOutput.of(ending.stdout.encode())
        return Outcome.of(code, job_id, exit_code=ending.exit_code, stdout=stdout, duration=ending.duration, **known)
