"""`sandfleet-web serve` and `new-user`, as people type them."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = (sys.executable, "-m", "sandfleet_web.cli")
TOKEN = "a-token-of-24-characters-or-more"


def ask(url: str, authorization: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  ours
            return int(answer.status), str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def basic(name: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


def test_serve_makes_a_password_serves_writes_the_history_and_ends(url: str, client: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"prometheus viewer {TOKEN}\n")
    tokens.chmod(0o600)
    env = {key: value for key, value in os.environ.items() if not key.startswith("SANDFLEET_")} | {
        "SANDFLEET_REDIS_URL": url,
        "SANDFLEET_WEB__PAGES__PORT": "0",
        "SANDFLEET_WEB__PAGES__TOKEN_FILE": str(tokens),
        "SANDFLEET_WEB__HISTORY__FILE": str(tmp_path / "history.db"),
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([*PROGRAM, "serve", "--notify"], env=env, stdout=output, stderr=output)
    try:
        wait_until(lambda: "the pages are at" in log.read_text() or process.poll() is not None, 30, "it serves")
        text = log.read_text()
        address, password = re.search(r"at (http://\S+)/fleet/", text), re.search(r"made for this run: (\S+)", text)
        assert address is not None, text
        assert password is not None, text
        login = basic("sandfleet", password[1])
        assert ask(f"{address[1]}/healthcheck") == (200, "OK")
        assert ask(f"{address[1]}/fleet/")[0] == 401
        assert "<h1" in ask(f"{address[1]}/", login)[1]
        assert json.loads(ask(f"{address[1]}/fleet/api/v1/summary", f"Bearer {TOKEN}")[1])["slots"] == 0
        status, metrics = ask(f"{address[1]}/fleet/metrics", f"Bearer {TOKEN}")
        assert (status, "sandfleet_workers" in metrics) == (200, True)
        assert ask(f"{address[1]}/fleet/", f"Bearer {TOKEN}")[0] == 401
        assert ask(f"{address[1]}/fleet/metrics", "Bearer wrong")[0] == 401
        wait_until((tmp_path / "history.db").exists, 10, "the history is written")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_new_user_writes_a_line_that_serve_reads(tmp_path: Path) -> None:
    path = tmp_path / "users"
    made = subprocess.run(
        [*PROGRAM, "new-user", "ann", "--role", "operator", "--file", path], check=False, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(rf"ann is operator in {path}; password: \S{{12,}}\n", made.stdout)
    given = subprocess.run(
        [*PROGRAM, "new-user", "bob", "--file", path, "--stdin"],
        check=False,
        input="a-long-password\n",
        capture_output=True,
        text=True,
    )
    assert given.stdout == f"bob is viewer in {path}\n"
    assert [line.split()[:2] for line in path.read_text().splitlines()] == [["ann", "operator"], ["bob", "viewer"]]
    for wrong in (["x/y"], ["ann", "--role", "admin"]):
        refused = subprocess.run(
            [*PROGRAM, "new-user", *wrong, "--file", path], check=False, capture_output=True, text=True
        )
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    short = subprocess.run(
        [*PROGRAM, "new-user", "eve", "--file", path, "--stdin"],
        input="short\n",
        check=False,
        capture_output=True,
        text=True,
    )
    assert (short.returncode, "a password has 8" in short.stderr) == (2, True)
