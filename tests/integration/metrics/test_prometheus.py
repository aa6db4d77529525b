"""A real Prometheus, with the configuration of docker-compose.yml, reads the pages' metrics by a token."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alert_rules import find_prometheus, read_rules, run_promtool
from page_server import PageServer, running_pages
from past import Past
from redis_servers import find_ports
from sandfleet_web.pages.opening import open_site
from sandfleet_web.pages.users import Users
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import Fleet
    from sandfleet_worker.delivery.ledger import Ledger

DEPLOY = Path(__file__).parents[3] / "deploy/prometheus"
TOKEN = "a-token-for-prometheus-0001"


@pytest.fixture
def pages(url: str, fleet: Fleet, ledger: Ledger, tmp_path: Path) -> Iterator[PageServer]:
    past = Past(url, fleet, ledger, tmp_path)
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(f"prometheus viewer {TOKEN}\n")
    try:
        with running_pages(open_site(past.settings(), Users(token_file=tokens))) as server, past.writing():
            yield server
    finally:
        past.close()


def write_config(folder: Path, target: str, token: str) -> Path:
    """Write the configuration as it is shipped, with another address, token file and interval."""
    text = (DEPLOY / "prometheus.yml").read_text()
    for shipped, own in (("/tmp/token", str(folder / "token")), ("web:5556", target), ("15s", "1s")):
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, own)
    (folder / "token").write_text(token)
    (folder / "rules.yml").write_text((DEPLOY / "rules.yml").read_text())
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


@contextmanager
def running_prometheus(folder: Path, config: Path) -> Iterator[str]:
    """Run it on a port of its own; yield its address."""
    log = folder / "prometheus.log"
    (port,) = find_ports(1)
    command = [find_prometheus("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with log.open("wb") as file:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=file, stdout=file)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(address) or process.poll() is not None, 60, "Prometheus is ready")
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        process.terminate()
        process.wait(30)


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready", timeout=5) as answer:  # noqa: S310  loopback
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, path: str, **query: str) -> Any:
    url = f"{address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  loopback
        return json.loads(answer.read())["data"]


def read_value(address: str, expression: str) -> float | None:
    found = ask(address, "query", query=expression)["result"]
    return float(found[0]["value"][1]) if found else None


def test_a_real_prometheus_reads_the_fleet_and_judges_it(pages: PageServer, fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    config = write_config(folder, pages.address.removeprefix("http://"), TOKEN)
    assert "SUCCESS" in run_promtool("check", "config", str(config))
    fleet.submit_many([{"image": "busybox", "command": ["true"]}] * 3)

    with running_prometheus(folder, config) as address:
        wait_until(lambda: read_value(address, "up") == 1, 30, "the pages are read")
        waiting = 'sandfleet_queue_jobs{queue="sandfleet",state="waiting"}'
        wait_until(lambda: read_value(address, waiting) == 3, 30, "it knows the queue")
        groups = ask(address, "rules")["groups"]
        loaded = [rule for group in groups for rule in group["rules"]]
        assert len(loaded) == len(read_rules())
        wait_until(
            lambda: all(rule["health"] == "ok" for group in ask(address, "rules")["groups"] for rule in group["rules"]),
            90,
            "each rule has been judged without an error",
        )
        assert read_value(address, "sandfleet_duplicates_total") == 0


def test_without_the_token_it_reads_nothing_and_says_so(pages: PageServer, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    config = write_config(folder, pages.address.removeprefix("http://"), "another-token-000000000000")
    with running_prometheus(folder, config) as address:
        wait_until(lambda: read_value(address, "up") == 0, 30, "it is refused")
        (target,) = ask(address, "targets")["activeTargets"]
        assert "401" in target["lastError"]
