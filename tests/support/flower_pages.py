"""A real Flower on a test's Redis, and requests to it as a browser sends them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sandfleet_worker
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage

MARKER = "PLANTED"
CONF = Path(sandfleet_worker.__file__).with_name("flowerconfig.py")


def spell_password(pair: str) -> str:
    """Return the header that a browser sends for ``user:password``."""
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


PASSWORD = spell_password("me:secret")
TOKEN = "a-token-for-prometheus"


class Flower:
    """A running Flower, its password and its log."""

    def __init__(self, port: int, log_path: Path, process_id: int = 0) -> None:
        self.log_path, self.process_id = log_path, process_id
        self.address = f"http://127.0.0.1:{port}"
        self.password = PASSWORD

    def get(self, path: str) -> str:
        return self._ask(path)

    def post(self, path: str) -> str:
        return self._ask(path, b"")

    def _ask(self, path: str, data: bytes | None = None) -> str:
        status, text = self.ask(path, data, self.password)
        assert status == 200, f"{path}: {status} {text}"
        return text

    def ask(self, path: str, data: bytes | None = None, password: str | None = None) -> tuple[int, str]:
        """Return status and text; `data` makes it a POST, None a GET."""
        headers = {} if password is None else {"Authorization": password}
        request = urllib.request.Request(f"{self.address}{path}", data=data, headers=headers)  # noqa: S310  ours
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  ours
                return int(answer.status), str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def find_rows(self, search: str = "") -> list[dict[str, Any]]:
        """Return the rows of the Tasks page that its search box finds."""
        query = {"draw": 1, "start": 0, "length": 100, "search[value]": search}
        query |= {"order[0][column]": 0, "order[0][dir]": "desc", "columns[0][data]": "received"}
        answer = self.get_json(f"/tasks/datatable?{urllib.parse.urlencode(query)}")
        assert "searchError" not in answer, answer
        return list(answer["data"])

    def find_ids(self, search: str) -> set[str]:
        return {row["uuid"] for row in self.find_rows(search)}

    def find_row(self, job_id: str) -> dict[str, Any]:
        return next((row for row in self.find_rows() if row["uuid"] == job_id), {})

    def find_workers(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the Workers page."""
        return {row["hostname"]: row for row in self.get_json("/workers?json=1")["data"]}


@contextlib.contextmanager
def running_flower(stage: Stage, **environment: str) -> Iterator[Flower]:
    """Start a Flower on the stage's Redis, and wait until it knows a worker."""
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
    history = {"SANDFLEET_WEB__HISTORY__FILE": str(stage.folder / "history.db")}
    env = stage.env | {"FLOWER_BASIC_AUTH": "me:secret", "FLOWER_TOKEN": TOKEN} | history | environment
    log_path = stage.folder / f"flower-{port}.log"  # of its own: a module may have another one that runs
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    page = Flower(port, log_path, process.pid)

    def is_up() -> bool:
        assert process.poll() is None, log_path.read_text()
        # Not a mere connection: one to a free port may by chance come from that very port, and reach itself.
        try:
            return page.ask("/healthcheck", password=None)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    try:
        wait_until(is_up, 30, "Flower answers")
        if made := re.search(r"made for this run: ([^\s\"]+)", log_path.read_text()):
            page.password = spell_password(made[1])
        wait_until(lambda: page.get_json("/api/workers?refresh=1"), 20, "Flower knows the worker")
        wait_until(page.find_workers, 20, "Flower has heard the worker")
        yield page
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
    assert MARKER not in log_path.read_text()
    assert "Traceback" not in log_path.read_text()
