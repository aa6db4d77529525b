"""Isolation of a job from worker and host: names, annotations, descriptors, core files, secrets."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from attacking import SECRET, answers
from sandfleet_config.codes import ErrorCode

if TYPE_CHECKING:
    from attacking import Attack
    from conftest import Run
    from sandfleet_worker.sandbox.runner import RunscRunner


# ---- the worker ----


def test_localhost_and_the_sandboxs_own_name_resolve(python: Run) -> None:
    outcome = python("""
import asyncio, socket
print(socket.gethostbyname("localhost"), socket.gethostbyname(socket.gethostname()), socket.getfqdn("127.0.0.1"))

async def echo(reader, writer):
    writer.write(await reader.readline())
    writer.close()

async def talk():
    server = await asyncio.start_server(echo, "localhost", 0)
    addresses = {each.getsockname()[0] for each in server.sockets}
    for address in sorted(addresses):
        port = next(each for each in server.sockets if each.getsockname()[0] == address).getsockname()[1]
        reader, writer = await asyncio.open_connection(address, port)
        writer.write(b"hello\\n")
        print(address, (await reader.readline()).decode().strip())

asyncio.run(talk())
""")
    assert outcome.code is ErrorCode.OK, outcome.stderr.text
    first, *heard = outcome.stdout.text.splitlines()
    assert first == "127.0.0.1 127.0.0.1 localhost"
    assert "127.0.0.1 hello" in heard


def test_labels_never_become_annotations(runner: RunscRunner, run: Run) -> None:
    labels = {
        "dev.gvisor.flag.host-uds": "all",
        "dev.gvisor.flag.network": "host",
        "dev.gvisor.spec.rootfs.source": "/etc/passwd",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "other",
    }
    texts: list[str] = []

    def poll() -> None:
        deadline = time.monotonic() + 15
        while not texts and time.monotonic() < deadline:
            for path in runner._owner.folder.glob("*/config.json"):
                with contextlib.suppress(OSError, ValueError):
                    json.loads(text := path.read_text())
                    texts.append(text)
            time.sleep(0.01)

    poller = threading.Thread(target=poll)
    poller.start()
    outcome = run("sh", "-c", "sleep 0.5; echo whole", labels=labels)
    poller.join()
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, "whole\n")
    annotations = json.loads(texts[0])["annotations"]
    assert set(annotations) == {f"dev.gvisor.spec.rootfs.{name}" for name in ("source", "type")}
    assert annotations["dev.gvisor.spec.rootfs.source"] == str(runner.images.resolve("busybox").erofs_path)
    assert "kubernetes" not in texts[0]


EXHAUST = """
import os, time
held = [os.open("/etc/passwd", os.O_RDONLY) for _ in range({odd})]
try:
    while True: held.append(os.pipe())
except OSError as error:
    print(error.errno, len(held), flush=True)
time.sleep(0.5)
"""


@pytest.mark.parametrize("odd", [0, 1])
def test_a_job_without_descriptors_left_does_not_kill_its_sandbox(python: Run, odd: int) -> None:
    """runsc 20240729 panics if the limit is its table's size and the last pipe fills the table."""
    outcome = python(EXHAUST.format(odd=odd))
    assert (outcome.code, outcome.stdout.text[:3]) == (ErrorCode.OK, "24 "), outcome.message


def test_a_job_takes_no_descriptor_of_the_worker(python: Run, run: Run) -> None:
    run("true")
    process = psutil.Process()
    before = process.num_fds()
    peaks: list[int] = []
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(0.02):
            peaks.append(process.num_fds())

    poller = threading.Thread(target=poll)
    poller.start()
    outcome = python(EXHAUST.format(odd=0))
    is_over.set()
    poller.join()
    assert outcome.stdout.text.startswith("24 "), outcome.message
    assert max(peaks) - before < 25
    assert process.num_fds() == before
    assert run("true").code is ErrorCode.OK


def test_nothing_of_the_worker_grows_with_its_jobs(run: Run) -> None:
    run("true")
    process = psutil.Process()
    before = (process.num_fds(), process.num_threads(), len(process.children(recursive=True)))
    for script in ("exit 1", "kill -9 $$", "cat /dev/zero | head -c 200000", "no-such-program"):
        run("sh", "-c", script)
    assert (process.num_fds(), process.num_threads(), len(process.children(recursive=True))) == before


def test_a_crash_leaves_no_core(runner: RunscRunner, attack: Attack) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    outcome = attack("""
import resource, subprocess
os.chdir("/tmp")
tell("limit", resource.getrlimit(resource.RLIMIT_CORE))
try: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
except ValueError: tell("raise", "refused")
child = os.fork()
if not child: os.abort()
status = os.waitpid(child, 0)[1]
tell("child", (os.WTERMSIG(status), os.WCOREDUMP(status), os.listdir("/tmp")))
os.abort()
""")
    assert (outcome.code, outcome.signal) == (ErrorCode.SIGNALED, signal.SIGABRT)
    told = answers(outcome)
    assert (told["limit"], told["raise"]) == ("(0, 0)", "refused")
    assert told["child"] == "(6, False, [])"
    places = {Path.cwd(), Path("/"), runner.config.runsc.root_dir}
    assert not [path for place in places for path in place.glob("*core.*") if path.stat().st_mtime > time.time() - 60]
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


def test_the_hosts_own_processes_of_a_sandbox_hold_no_secret(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """If a program ever breaks out into its sentry, no environment of the worker may be there."""
    monkeypatch.setenv("SANDFLEET_TEST_SECRET", SECRET)
    seen: dict[str, bytes] = {}
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(0.02):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    if words := child.cmdline():
                        seen[Path(words[0]).name] = Path(f"/proc/{child.pid}/environ").read_bytes()

    poller = threading.Thread(target=poll)
    poller.start()
    run("sleep", "0.5")
    is_over.set()
    poller.join()
    assert {"runsc", "runsc-sandbox"} <= set(seen)
    assert not [name for name, environment in seen.items() if SECRET.encode() in environment]
