"""Everything on one machine: `sandfleet-worker local`."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
from receivers import open_receiver, write_secret
from stage import Stage, Stock
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Machine:
    """A machine's folders, and the stacks that were started on it."""

    stage: Stage
    started: list[subprocess.Popen[bytes]]
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        env = self.stage.env | self.settings | {"SANDFLEET_LOCAL_DIR": str(self.stage.folder / "local")}
        env["SANDFLEET_LOCAL_STATE_DIR"] = str(self.stage.folder / "state")
        del env["SANDFLEET_REDIS_URL"]
        return env

    @property
    def log(self) -> str:
        return (self.stage.folder / f"local-{len(self.started)}.log").read_text()

    @property
    def stock(self) -> Stock:
        socket = self.stage.folder / "local" / "redis.sock"
        return Stock(f"unix://{socket}?db=0", redis.Redis(unix_socket_path=str(socket)))

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "sandfleet_worker.cli", "local", "--concurrency", "2", *options]
        with (self.stage.folder / f"local-{len(self.started) + 1}.log").open("wb") as log:
            process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        self.started.append(process)
        return process

    def start_ready(self, *options: str) -> subprocess.Popen[bytes]:
        process = self.start(*options)
        wait_until(lambda: "sandfleet is up" in self.log or process.poll() is not None, 60, "the stack is up")
        assert process.poll() is None, self.log
        return process


@pytest.fixture
def machine(images_root: Path) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="sfl-") as folder:
        machine = Machine(Stage(Path(folder), images_root, "", redis.Redis()), [])
        yield machine
        for process in machine.started:
            if process.poll() is None:
                process.terminate()
            process.wait(60)
        assert find_members(folder) == []


def find_members(folder: str) -> list[str]:
    """Return the live processes of stacks in `folder`, by their command line or environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it may end at any moment
            line = process.cmdline()
            words = [*line, *process.environ().values()]
            if any(folder in word for word in words) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(line))
    return found


def test_local_runs_jobs_shows_flower_and_ends_in_order(machine: Machine) -> None:
    process = machine.start_ready("--flower-port", "0")

    stock = machine.stock
    assert stock.outcome(stock.submit("sh", "-c", "echo hi"))["stdout"]["data"] == "hi\n"
    found = re.search(r"Flower: (\S+)  user sandfleet  password (\S+)", machine.log)
    assert found
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(found[1], timeout=10)  # noqa: S310  our own address
    assert raised.value.code == 401
    raised.value.close()
    assert (machine.stage.folder / "local").stat().st_mode & 0o777 == 0o700
    assert found[2] not in " ".join(find_members(str(machine.stage.folder))), "no password on a command line"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert machine.log.index("has stopped") > 0
    assert "Traceback" not in machine.log


def test_local_with_demo_brings_a_batch_to_look_at_on_its_pages(machine: Machine) -> None:
    machine.start_ready("--demo", "--flower-port", "0")

    assert re.search(r"the batch demo runs: \d+ jobs, some of which fail on purpose", machine.log), machine.log
    found = re.search(r"Flower: (\S+)  user sandfleet  password (\S+)", machine.log)
    assert found
    assert f"pages of the fleet: {found[1]}/fleet/" in machine.log
    login = base64.b64encode(f"sandfleet:{found[2]}".encode()).decode()
    request = urllib.request.Request(f"{found[1]}/fleet/batch?name=demo", headers={"Authorization": f"Basic {login}"})  # noqa: S310

    def has_failures() -> bool:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  our own address
            page = answer.read().decode()
        return "EXIT_NONZERO" in page and 'data-code="OK"' in page

    wait_until(has_failures, 60, "the page of the batch shows what ended well, and what did not")
    assert "Traceback" not in machine.log


def test_signals_at_any_time_and_together_end_it_in_order(machine: Machine) -> None:
    for is_up in (True, False):
        process = machine.start("--no-flower")
        sign = "sandfleet is up" if is_up else ""
        wait_until(lambda: sign in machine.log and psutil.Process(process.pid).children(), 60, "it has begun")  # noqa: B023
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)

        assert process.wait(60) == 0, machine.log
        assert "Traceback" not in machine.log
        wait_until(lambda: not find_members(str(machine.stage.folder)), 10, "nothing is left")


def test_when_memory_runs_out_redis_is_killed_last(machine: Machine) -> None:
    process = machine.start_ready("--no-flower")
    children = psutil.Process(process.pid).children()
    scores = {
        name: next(score_of(child.pid) for child in children if name in child.cmdline()[0] or name in child.cmdline())
        for name in ("redis-server", "start")
    }
    job = machine.stock.submit("sleep", "20")

    def sandbox_scores() -> list[int]:
        lines = {process.pid: " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])}
        folder = str(machine.stage.folder)
        return [score_of(pid) for pid, line in lines.items() if line.startswith("runsc-sandbox") and folder in line]

    # A sandbox may be gone a moment later: one that was a probe, or that served another job.
    seen: list[int] = []

    def is_up() -> bool:
        seen[:] = sandbox_scores()
        return bool(seen)

    wait_until(is_up, 30, "a sandbox is up")
    assert scores["redis-server"] < scores["start"] < min(seen), job


def score_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_a_second_local_is_refused(machine: Machine) -> None:
    first = machine.start_ready("--no-flower")
    second = machine.start("--no-flower")

    assert second.wait(20) == 1
    assert f"process {first.pid}" in machine.log
    assert "Traceback" not in machine.log
    assert first.poll() is None


def test_a_killed_local_leaves_nothing_and_a_restart_runs_the_queued_jobs(machine: Machine) -> None:
    process = machine.start_ready("--no-flower")
    stock = machine.stock
    jobs = [stock.submit("sh", "-c", "sleep 1; exit 4") for _ in range(4)]
    wait_until(lambda: machine.log.count("action=job_started") == 2, 20, "two jobs run, two wait")
    process.kill()
    process.wait()
    wait_until(lambda: not find_members(str(machine.stage.folder)), 10, "every child died with it")

    machine.start_ready("--no-flower")

    assert [machine.stock.outcome(job_id)["exit_code"] for job_id in jobs] == [4, 4, 4, 4]


def test_a_crashed_child_ends_the_others_and_is_reported(machine: Machine) -> None:
    process = machine.start_ready("--no-flower")
    worker = next(child for child in psutil.Process(process.pid).children() if "start" in child.cmdline())
    worker.kill()

    assert process.wait(60) == 1
    assert "worker ended by itself with -9" in machine.log
    wait_until(lambda: not find_members(str(machine.stage.folder)), 10, "nothing is left")
    machine.start_ready("--no-flower")  # the new worker's janitor clears what the killed one left


def test_local_sends_webhooks(machine: Machine) -> None:
    with open_receiver() as receiver:
        secret = write_secret(machine.stage.folder)
        endpoint = {"url": f"http://127.0.0.1:{receiver.port}/", "secret_file": str(secret), "allow_private": True}
        machine.settings["SANDFLEET_WEB__ENDPOINTS"] = json.dumps({"ci": endpoint})
        machine.start_ready("--no-flower")
        jobs = machine.stage.folder / "jobs.jsonl"
        jobs.write_text('{"image": "busybox", "command": ["true"]}\n')
        words = ["submit", str(jobs), "--batch", "nightly", "--on-done", "ci"]
        subprocess.run([sys.executable, "-m", "sandfleet.cli", *words], env=machine.env, timeout=60, check=True)
        wait_until(lambda: receiver.received, 30, "the webhook has come")
    assert receiver.received[0].payload["data"] == {"batch": "nightly", "total": 1, "codes": {"OK": 1}}


def test_local_refuses_a_redis_of_somebody_else(machine: Machine) -> None:
    command = [sys.executable, "-m", "sandfleet_worker.cli", "local"]
    env = machine.env | {"SANDFLEET_REDIS_URL": "redis://127.0.0.1:6379/0"}

    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == 1
    assert "brings its own Redis" in done.stderr


def test_the_stack_has_a_store_that_producers_of_the_machine_find(machine: Machine) -> None:
    machine.start_ready("--no-flower")
    done = subprocess.run(
        [sys.executable, "-m", "sandfleet.cli", "store", "usage", "--json"],
        env=machine.env,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(done.stdout)["store"] == f"the store {machine.stage.folder}/local/store"
    assert (machine.stage.folder / "state" / "store").stat().st_mode & 0o777 == 0o700
