"""What people see in Flower: a line a job, its code, and no secret."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sandfleet_worker
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage, Stock

MARKER = "PLANTED"
CONF = Path(sandfleet_worker.__file__).with_name("flowerconfig.py")


class Flower:
    """A running Flower and its password."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self._headers = {"Authorization": f"Basic {base64.b64encode(b'me:secret').decode()}"}

    def get(self, path: str) -> str:
        return self._ask(path)

    def post(self, path: str) -> str:
        return self._ask(path, b"")

    def _ask(self, path: str, data: bytes | None = None) -> str:
        request = urllib.request.Request(f"{self.address}{path}", data=data, headers=self._headers)  # noqa: S310  ours
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310  ours
            return str(answer.read().decode())

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def status(self, path: str) -> int:
        """Ask without a password."""
        try:
            with urllib.request.urlopen(f"{self.address}{path}", timeout=10) as answer:  # noqa: S310  ours
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code


@pytest.fixture(scope="module")
def flower(module_stage: Stage) -> Iterator[Flower]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "sandfleet_worker.app",
        "flower",
        f"--conf={CONF}",
        f"--port={port}",
    ]
    env = module_stage.env | {"FLOWER_BASIC_AUTH": "me:secret"}
    log_path = module_stage.folder / "flower.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    page = Flower(port)

    def is_up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(is_up, 30, "Flower answers")
        wait_until(lambda: page.get_json("/api/workers?refresh=1"), 20, "Flower knows the worker")
        yield page
    finally:
        process.terminate()
        process.wait(20)
    assert MARKER not in log_path.read_text()


@pytest.fixture(scope="module")
def jobs(flower: Flower, module_stage: Stage, stock: Stock) -> dict[str, str]:
    """Run one job of each kind, and wait until Flower knows their ends."""
    commands: dict[str, tuple[list[str], dict[str, Any]]] = {
        "OK": (["sh", "-c", "echo $SECRET; cat"], {"labels": {"name": "sieve"}}),
        "exit 3": (["sh", "-c", "echo $SECRET; cat; exit 3"], {}),
        "TIMEOUT": (["sh", "-c", "cat; sleep 60"], {"timeout": 0.3}),
        "SPEC_INVALID": (["true"], {"timeout": -1}),
        "IMAGE_NOT_FOUND": (["true"], {"image": "nowhere"}),
    }
    secrets = {"env": [f"SECRET={MARKER}"], "stdin": MARKER}
    found = {end: stock.submit(*command, fields=secrets | fields) for end, (command, fields) in commands.items()}
    for job_id in found.values():
        stock.outcome(job_id)

    def all_ended() -> bool:
        tasks = flower.get_json("/api/tasks")
        return all(tasks.get(job_id, {}).get("state") in {"SUCCESS", "FAILURE"} for job_id in found.values())

    wait_until(all_ended, 20, "Flower has heard of every end")
    return found


@pytest.mark.parametrize("path", ["/", "/tasks", "/broker", "/api/tasks", "/api/workers"])
def test_nobody_enters_without_the_password(flower: Flower, path: str) -> None:
    assert flower.status(path) == 401


def test_each_job_is_a_readable_line_with_its_code(flower: Flower, jobs: dict[str, str]) -> None:
    tasks = flower.get_json("/api/tasks")

    assert tasks[jobs["OK"]]["args"] == "sieve: busybox sh -c 'echo $SECRET; cat'"
    assert tasks[jobs["OK"]]["result"] == "OK"
    assert tasks[jobs["exit 3"]]["result"] == "exit 3"
    for code in ("TIMEOUT", "SPEC_INVALID", "IMAGE_NOT_FOUND"):
        assert tasks[jobs[code]]["exception"].startswith(f"{code}: ")


def test_the_jobs_page_shows_the_code(flower: Flower, jobs: dict[str, str]) -> None:
    for end, job_id in jobs.items():
        assert end in flower.get(f"/task/{job_id}")


def test_no_page_shows_output_environment_or_stdin(flower: Flower, jobs: dict[str, str]) -> None:
    worker = next(iter(flower.get_json("/api/workers")))
    table = "/tasks/datatable?draw=1&start=0&length=50&search[value]=&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"
    paths = ["/", "/tasks", "/broker", "/metrics", "/api/tasks", "/api/workers?refresh=1", f"/worker/{worker}", table]
    paths += [f"/task/{job_id}" for job_id in jobs.values()] + [f"/api/task/info/{job_id}" for job_id in jobs.values()]

    pages = {path: flower.get(path) for path in paths}

    assert [path for path, page in pages.items() if MARKER in page] == []


def test_the_api_that_would_show_outcomes_is_closed(flower: Flower, jobs: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        flower.get(f"/api/task/result/{jobs['OK']}")
    assert raised.value.code == 404
    raised.value.close()


def test_the_broker_page_counts_the_right_queue(flower: Flower, module_stage: Stage, stock: Stock) -> None:
    os.kill(module_stage.workers[0].process.pid, 19)  # SIGSTOP: nobody takes what is queued now
    try:
        waiting = [stock.submit("true") for _ in range(7)]
        lengths = {queue["name"]: queue["messages"] for queue in flower.get_json("/api/queues/length")["active_queues"]}
    finally:
        os.kill(module_stage.workers[0].process.pid, 18)
    assert lengths["sandfleet"] >= 6  # one may already be in the worker's pocket
    for job_id in waiting:
        stock.outcome(job_id)


def test_flowers_button_cancels(flower: Flower, module_stage: Stage, stock: Stock) -> None:
    job_id = stock.submit("sleep", "60", fields={"timeout": 60})
    wait_until(lambda: module_stage.has_started(job_id), 20, "the job runs")
    flower.post(f"/api/task/revoke/{job_id}?terminate=true")

    assert stock.outcome(job_id, 15)["code"] == "CANCELLED"
