"""Workers on a host of the test's own, and a stock Celery client."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from celery import Celery
from cgrouptree import CGROUP_PARENT, find_cgroups
from prestarted import start_worker
from sandfleet_config.queues import KEY_PREFIX, cancel_key, result_key
from sandfleet_config.settings import PolicySettings
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

READY = "action=worker_ready"
JOB_MEMORY_BYTES = PolicySettings().memory_bytes
PROGRAM = ("-m", "sandfleet_worker.cli", "start")
NEW_SETTINGS = "SANDFLEET_FILES__"
"""The beginning of settings that the earlier releases of the tests do not know."""


@dataclass
class Worker:
    """One `sandfleet-worker start` as its own process group, with its log."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def is_ready(self) -> bool:
        """Whether it was ready for jobs at some time; it may have ended since."""
        return READY in self.log

    def wait_ready(self) -> None:
        wait_until(lambda: self.is_ready or self.process.poll() is not None, 60, "the worker is ready")
        assert self.process.poll() is None, self.log

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_seconds: float = 60) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_seconds)


@dataclass
class Stage:
    """The ground that workers of a test share: Redis, one host's folders, images."""

    folder: Path
    images: Path
    redis_url: str
    redis: redis.Redis
    workers: list[Worker] = field(default_factory=list)
    python: str = sys.executable
    """Of the workers that are started next: another release has its own."""
    state: Path = field(init=False)
    """Where workers keep locks and the state of sandboxes: `folder`, unless a test changes it."""

    def __post_init__(self) -> None:
        self.state = self.folder

    @property
    def env(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SANDFLEET_", "CELERY_"))}
        return own | {
            "SANDFLEET_REDIS_URL": self.redis_url,
            "SANDFLEET_SLOTS_DIR": str(self.state / "slots"),
            "SANDFLEET_RUNSC__ROOT_DIR": str(self.state / "runsc"),
            "SANDFLEET_RUNSC__CGROUP_PARENT": CGROUP_PARENT,
            "SANDFLEET_IMAGES__ROOT": str(self.images),
            "SANDFLEET_FILES__CACHE_DIR": str(self.state / "files"),
            "SANDFLEET_FILES__SPOOL_DIR": str(self.state / "spool"),
            "SANDFLEET_POLICY__PLATFORMS": "kvm",
            # Where kvm hangs, each attempt takes all of it.
            "SANDFLEET_RUNSC__BOOT_DEADLINE_SECONDS": "10",
        }

    def env_of(self, python: str) -> dict[str, str]:
        """Return the environment for this `python`: an earlier release refuses settings that it does not know."""
        if python == sys.executable:
            return self.env
        return {key: value for key, value in self.env.items() if not key.startswith(NEW_SETTINGS)}

    def start(self, concurrency: int = 2, program: Sequence[str] = PROGRAM, **settings: str) -> Worker:
        """Start a worker without waiting for it; `program` are Python's arguments."""
        log_path = self.folder / f"worker-{len(self.workers)}.log"
        env, options = self.env_of(self.python) | settings, ["--concurrency", str(concurrency)]
        process = None
        if self.python == sys.executable:
            words = ["sandfleet-worker", "start"] if program == PROGRAM else program
            process = start_worker([*words, *options], env, log_path)
        if process is None:
            with log_path.open("wb") as log:
                command = [self.python, *program, *options]
                process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        worker = Worker(process, log_path)
        self.workers.append(worker)
        return worker

    def has_started(self, job_id: str) -> bool:
        """Whether a worker of this stage has begun to run the job."""
        return any(f"job {job_id} starts" in worker.log for worker in self.workers)

    def find_sentries(self) -> list[psutil.Process]:
        """Return the processes of this host's running sandboxes, one each."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if words and words[0] == "runsc-sandbox" and str(self.folder) in " ".join(words):
                    found.append(process)
        return found

    def kill_sentries(self) -> None:
        """Kill the sandboxes that run: trouble of ours, from outside."""
        wait_until(self.find_sentries, 20, "a sentry runs")
        time.sleep(0.3)
        for process in self.find_sentries():
            os.kill(process.pid, signal.SIGKILL)

    def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGQUIT)
        for worker in self.workers:
            try:
                worker.process.wait(30)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def clean(self) -> None:
        """Remove what killed workers left, as an operator would."""
        command = [sys.executable, "-m", "sandfleet_worker.cli", "clean"]
        subprocess.run(command, env=self.env, check=True, capture_output=True)

    def find_leftovers(self) -> list[str]:
        """Name what is left on the host of this stage's sandboxes."""
        root = str(self.state / "runsc")
        left = [str(path) for path in (self.state / "runsc").glob("sandfleet-*")]
        left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if root in line]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if root in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(" ".join(process.cmdline()))
        return left + find_cgroups(CGROUP_PARENT)

    def find_running(self) -> list[str]:
        """Name the sandboxes that have a job.

        An idle one may use less memory than any job here, and the cgroup of a spare has no limit yet.
        """
        owners = {path.name for path in (self.state / "runsc").glob("sandfleet-*")}
        found = []
        for folder, file in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):  # cgroup v1 and v2
            parent = Path("/sys/fs/cgroup", folder, CGROUP_PARENT)
            for name in os.listdir(parent) if parent.is_dir() else ():  # noqa: PTH208  pathlib's glob fails on what goes meanwhile
                with contextlib.suppress(OSError):
                    limit = (parent / name / file).read_text().strip()
                    if name.split(".")[0] in owners and limit == str(JOB_MEMORY_BYTES):
                        found.append(name)
        return found

    def find_owners(self) -> set[str]:
        """Name the workers, alive or not, of whose sandboxes anything is here."""
        return {Path(left).name.split(".")[0] for left in self.find_leftovers() if "sandfleet-" in Path(left).name}


class Stock:
    """A plain Celery client that knows only names: what anybody may write into the queue."""

    def __init__(self, url: str, client: redis.Redis) -> None:
        path = url.removeprefix("unix://").partition("?")[0]
        address = f"redis+socket://{path}?virtual_host=0"
        self.redis = client
        self.app = Celery("stock", broker=address, backend=address, set_as_current=False)
        self.app.conf.update(
            broker_transport_options={"global_keyprefix": KEY_PREFIX},
            result_backend_transport_options={"global_keyprefix": KEY_PREFIX},
            task_default_queue="sandfleet",
        )

    def submit(
        self,
        *command: str,
        fields: dict[str, Any] | None = None,
        queue: str = "sandfleet",
        batch: str | None = None,
        **options: Any,
    ) -> str:
        """Queue a job, and return its id."""
        spec = {"image": "busybox", "command": command, "timeout": 30, **(fields or {})}
        contract = 5 if "files" in spec else 2 if "max_attempts" in spec else 1
        text = json.dumps({"contract": contract, "spec": spec, "batch": batch})
        # Ignored here only: it saves a subscription, and workers record an outcome whatever the
        # message says.
        result = self.app.send_task("sandfleet.run", args=[text], queue=queue, ignore_result=True, **options)
        return str(result.id)

    def push(self, body: object, headers: dict[str, Any] | None = None, **envelope: Any) -> str:
        """Push a message of any form; `body` is JSON unless it is text already."""
        job_id = str(uuid.uuid4())
        message = {
            "body": body if isinstance(body, str) else json.dumps(body),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"id": job_id, "task": "sandfleet.run", **(headers or {})},
            "properties": {
                "delivery_tag": str(uuid.uuid4()),
                "delivery_info": {"exchange": "", "routing_key": "sandfleet"},
                "priority": 0,
            },
        }
        self.redis.lpush(f"{KEY_PREFIX}sandfleet", json.dumps(message | envelope))
        return job_id

    def stored(self, job_id: str) -> dict[str, Any] | None:
        """Return the stored result record, raw."""
        raw: Any = self.redis.get(result_key(job_id))
        return None if raw is None else dict(json.loads(raw))

    def wait(self, job_id: str, timeout_seconds: float = 60) -> dict[str, Any]:
        """Wait for the result record, and return it raw."""
        wait_until(lambda: self.redis.exists(result_key(job_id)), timeout_seconds, f"job {job_id} has an outcome")
        record = self.stored(job_id)
        assert record is not None
        return record

    def outcome(self, job_id: str, timeout_seconds: float = 60) -> dict[str, Any]:
        """Wait for the job, and return its outcome, however it ended."""
        record = self.wait(job_id, timeout_seconds)
        result = record["result"]
        return dict(result if record["status"] == "SUCCESS" else result["exc_message"][2])

    def cancel_by_key(self, job_id: str) -> None:
        self.redis.set(cancel_key(job_id), "1", ex=60)
