"""The command ``sandfleet submit`` with and without encoder processes, and what it leaves in Redis."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandfleet_config.queues import job_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

QUEUE: Final = "sandfleet:sandfleet\x06\x166"
_START: Final = """
import atexit, os, signal, sys, time
from sandfleet.cli import main
from sandfleet.cli.ways import stages
from sandfleet.submit import encoders, submitting

parent, forks, fork = os.getpid(), [], os.fork

def count_fork():
    pid = fork()
    if pid:
        forks.append(pid)
    return pid

def in_child():
    return os.getpid() != parent

stages.PLAIN_SECONDS = 1e9  # a slow machine gets a line more
os.fork = count_fork
os.sched_getaffinity = lambda _: set(range(cores))
"""
_END: Final = """
status = main()
print("FORKED", len(forks), flush=True)
for pid in forks:
    try:
        os.kill(pid, 0)
        print("LEFT", pid, flush=True)
    except ProcessLookupError:
        pass
sys.exit(status)
"""


class Ended(NamedTuple):
    """How a command ended; `forked` processes were started, `left` of them were there at the end."""

    code: int
    stdout: str
    stderr: str
    forked: int
    left: int


def start(url: str, argv: Sequence[str], change: str = "", *, cores: int = 3, **options: Any) -> subprocess.Popen[str]:
    """Start a submit with so many cores: that many encoders, none with 1; with 0 as for few jobs.

    `change` is run before it.
    """
    program = f"cores = {cores}\n{_START}\nsubmitting.LEAST_JOBS = 1 if cores else 1 << 60\n{change}\n{_END}"
    env = os.environ | {"SANDFLEET_REDIS_URL": url} | options.pop("env", {})
    command = [sys.executable, "-c", program, "submit", *argv]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, **pipes, **options)


def finish(process: subprocess.Popen[str]) -> Ended:
    """Wait for the end of `start`."""
    stdout, stderr = process.communicate(timeout=60)
    lines = stdout.splitlines()
    forked = sum(int(line.split()[1]) for line in lines if line.startswith("FORKED"))
    left = sum(line.startswith("LEFT") for line in lines)
    printed = [line for line in lines if not line.startswith(("FORKED", "LEFT"))]
    return Ended(process.returncode, "\n".join(printed), stderr, forked, left)


def submit(url: str, argv: Sequence[str], change: str = "", *, cores: int = 3, **options: Any) -> Ended:
    """Run a submit to its end."""
    return finish(start(url, argv, change, cores=cores, **options))


def read_queued(client: redis.Redis) -> list[dict[str, Any]]:
    """Return all that Redis has of the queued jobs, in their order, without ids and times."""
    found: list[dict[str, Any]] = []
    texts: Any = client.lrange(QUEUE, 0, -1)
    for text in reversed(texts):
        message = json.loads(text)
        headers, properties = message["headers"], message["properties"]
        job_id = headers["id"]
        assert job_id == headers["root_id"] == properties["correlation_id"]
        for part, names in ((headers, ("id", "root_id", "origin")), (properties, ("correlation_id", "reply_to"))):
            for name in names:
                del part[name]
        tag = properties.pop("delivery_tag")
        submitted = headers.pop("sandfleet-submitted")
        message["body"] = json.loads(base64.b64decode(message["body"]))
        values: Any = client.hgetall(job_key(job_id))
        fields = {key.decode(): value.decode() for key, value in values.items()}
        record = json.loads(fields.pop("record"))
        assert record.pop("submitted") == submitted
        if not fields["key"]:
            assert fields.pop("fingerprint") == tag
        del fields["expires"]
        keyed: Any = client.get(f"sandfleet:idem:{fields['key']}") if fields["key"] else None
        assert keyed is None or keyed.decode() == job_id
        found.append({"message": message, "fields": fields, "record": record})
    return found


def read_batch(client: redis.Redis, name: str) -> tuple[list[int], bool]:
    """Return the places in the queue of a batch's jobs, in the batch's order, and whether it is sealed."""
    texts: Any = client.lrange(QUEUE, 0, -1)
    places = {json.loads(text)["headers"]["id"]: place for place, text in enumerate(reversed(texts))}
    members: Any = client.lrange(f"sandfleet:batch:{name}", 0, -1)
    return [places[member.decode()] for member in members], client.hget(f"sandfleet:counts:{name}", "sealed") == b"1"


def list_children(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_there(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
