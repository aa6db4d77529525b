"""Prepared jobs one after another, of two images: none finds anything of those before it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from imagetools import extract
from preparedhost import execute, plan_of, wait_prepared
from sandfleet_config.codes import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_worker.sandbox.runner import RunscRunner

JOBS = int(os.environ.get("TEST_PREPARED_JOBS", "12"))
TWIN = f"test-python-twin-{os.getpid()}"
PROBE = """
import builtins, ctypes, json, os, random, signal, socket, subprocess, sys, tempfile, threading, uuid

libc = ctypes.CDLL(None)
other = socket.socket(socket.AF_UNIX)
found = [
    *(f"{folder}/{name}" for folder in ("/tmp", "/dev/shm") for name in os.listdir(folder)),
    *(f"process {name}" for name in os.listdir("/proc") if name.isdecimal() and int(name) not in (1, os.getpid())),
    *(f"descriptor {name}" for name in os.listdir("/proc/self/fd") if int(name) > 4),  # 3 the socket, 4 the folder
    *(name for name in ("mark", "MARK") if hasattr(builtins, name) or hasattr(random, name) or name in os.environ),
    *(["shared memory"] if libc.shmget(4242, 4096, 0) != -1 else []),
    *(["a socket"] if other.connect_ex("\\0mark") == 0 else []),
    *(["a thread"] if threading.active_count() > 1 else []),
    *(["a handler"] if signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL else []),
    *(["a mask"] if os.umask(0o077) != 0o022 else []),
    *(["a path"] if "/mark" in sys.path else []),
]
random_values = {
    "random": random.random(),
    "uuid4": str(uuid.uuid4()),
    "uuid1": uuid.uuid1().node,
    "hash": hash("mark"),
    "address": id(object()),
    "name": next(tempfile._get_candidate_names()),
    "urandom": os.urandom(8).hex(),
}
print(json.dumps([found, random_values]), flush=True)

# Leave what can be left.
for folder in ("/tmp", "/dev/shm"):
    open(f"{folder}/mark", "w").write("x")
builtins.mark = random.mark = True
os.environ["MARK"] = "1"
sys.path.insert(0, "/mark")
random.seed(1)
signal.signal(signal.SIGUSR1, lambda *_: None)
libc.shmget(4242, 4096, 0o1666)
here = socket.socket(socket.AF_UNIX)
here.bind("\\0mark"), here.listen()
subprocess.Popen(["sleep", "600"], start_new_session=True)
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


@pytest.fixture
def images(prepared_host: RunscRunner, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two images with Python, of which one has a file more."""
    tree = extract(prepared_host.images.resolve("python"), tmp_path / "tree")
    (tree / "etc" / "twin").write_text("another image\n")
    prepared_host.images.add(TWIN, f"rootfs:{tree}")
    yield "python", TWIN
    prepared_host.images.remove(TWIN)


def test_what_a_job_leaves_is_found_where_it_is_shared(prepared_host: RunscRunner) -> None:
    """Within one job the probe finds all that it left: a probe that is blind would pass below."""
    ending = execute(prepared_host, "python3", "-c", PROBE + PROBE)
    found, values = json.loads(ending.stdout.text.splitlines()[1])
    kinds = {name.split(" ")[0] for name in found}
    assert kinds == {"/tmp/mark", "/dev/shm/mark", "process", "descriptor", "mark", "MARK", "shared", "a"}
    assert {"a socket", "a thread", "a handler", "a mask", "a path"} <= set(found)
    assert values["random"] != json.loads(ending.stdout.text.splitlines()[0])[1]["random"]


@pytest.mark.timeout(3600)
def test_prepared_jobs_in_a_row_share_nothing(prepared_host: RunscRunner, images: tuple[str, str]) -> None:
    told: list[dict[str, object]] = []
    plans = {image: plan_of(prepared_host, image) for image in images}
    for image, plan in plans.items():
        prepared_host._provider.pool.pin(plan)
        execute(prepared_host, "python3", "-c", "pass", image=image)
    for number in range(JOBS):
        image = images[number % 2]
        wait_prepared(prepared_host, plans[image])
        ending = execute(prepared_host, "python3", "-c", PROBE, image=image)
        assert (ending.verdict.code, ending.start, ending.stderr.text) == (ErrorCode.OK, "prepared", "")
        found, values = json.loads(ending.stdout.text)
        assert found == [], f"job {number} of {image}"
        told.append(values)
    for name in told[0]:
        assert len({values[name] for values in told}) == JOBS, f"{name} was the same in two jobs"
