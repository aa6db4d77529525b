"""Cause what each alert is about, for real, and see the series that it uses move."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from alert_rules import NAME, read_rules
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from sandfleet.channel.fleet_state import Pause
from sandfleet_web.metrics.fleet_metrics import AgeTargets, render_fleet_metrics
from scrape import Scraped, free_port
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from havoc import Havoc
    from stage import Worker

TARGETS = AgeTargets(0.2)
SEEN: set[str] = set()
"""Series that the tests of this module have seen to move."""


class Watched:
    """A broken fleet as Prometheus sees it."""

    def __init__(self, havoc: Havoc) -> None:
        self.havoc, self.ports = havoc, dict[int, int]()
        self.fleet = Fleet(Settings(redis_url=SecretStr(havoc.server.url)))

    def start(self, **settings: str) -> Worker:
        port = free_port()
        worker = self.havoc.start(2, SANDFLEET_METRICS__PORT=str(port), SANDFLEET_QUEUES="sandfleet", **settings)
        self.ports[worker.process.pid] = port
        return worker

    def of_worker(self, worker: Worker) -> Scraped:
        return Scraped.read(self.ports[worker.process.pid])

    def of_fleet(self) -> Scraped:
        return Scraped(render_fleet_metrics(self.fleet.state.read_summary(), None, TARGETS).decode())


def saw(name: str) -> None:
    SEEN.add(f"sandfleet_{name}")


@pytest.fixture
def watched(havoc: Havoc) -> Iterator[Watched]:
    found = Watched(havoc)
    with found.fleet:
        yield found


def test_no_workers_and_a_dead_one(watched: Watched) -> None:
    first, second = watched.start(), watched.start()
    wait_until(lambda: watched.of_fleet().value("sandfleet_workers", state="up") == 2, 10, "two workers are up")
    assert watched.of_worker(second).value("sandfleet_takeovers_total") == 0

    first.process.kill()
    wait_until(lambda: watched.of_worker(second).value("sandfleet_takeovers_total") == 1, 20, "one is taken over")
    saw("takeovers_total")
    wait_until(lambda: watched.of_fleet().value("sandfleet_workers", state="up") == 1, 10, "one worker is up")
    second.stop()
    assert 'sandfleet_workers{state="up"} 0.0' in watched.of_fleet().text
    saw("workers")


def test_a_host_that_fails_and_a_dead_letter(watched: Watched) -> None:
    worker, stock = watched.start(), watched.havoc.stock
    stock.outcome(stock.submit("true"))

    def count(**labels: str) -> float:
        return watched.of_worker(worker).value("sandfleet_attempts_ended_total", **labels)

    wait_until(lambda: count(category="ok") == 1, 10, "a worker counts an attempt after its outcome is recorded")
    assert count(category="host") == 0
    assert watched.of_fleet().value("sandfleet_dead_letters") == 0

    job_id = stock.submit("sleep", "30", fields={"max_attempts": 1})
    watched.havoc.stage.kill_sentries()
    outcome = stock.outcome(job_id)
    assert outcome["category"] == "host"
    labels = {"host": outcome["host"], "code": outcome["code"], "category": "host"}
    wait_until(lambda: count(**labels) == 1, 10, "the failed attempt is counted")
    saw("attempts_ended_total")
    assert watched.of_fleet().value("sandfleet_dead_letters") == 1
    saw("dead_letters")


def test_a_queue_that_nobody_serves_grows_old_until_it_is_paused(watched: Watched) -> None:
    watched.start()
    watched.havoc.stock.submit("true", queue="sandfleet")
    watched.havoc.stock.submit("true", queue="nobody")
    # A stock producer's queue is found by the message in it; ours names its queue.
    watched.fleet.submit({"image": "busybox", "command": ["true"]}, queue="nobody")

    first = watched.of_fleet()
    assert first.value("sandfleet_queue_jobs", queue="nobody", state="waiting") == 2
    assert 'sandfleet_queue_workers{queue="nobody"} 0.0' in first.text
    assert first.value("sandfleet_queue_age_target_seconds", queue="nobody") == TARGETS.seconds
    for name in ("queue_jobs", "queue_workers", "queue_age_target_seconds"):
        saw(name)
    wait_until(
        lambda: watched.of_fleet().value("sandfleet_queue_oldest_age_seconds", queue="nobody") > TARGETS.seconds,
        10,
        "the oldest job is older than its target",
    )
    saw("queue_oldest_age_seconds")

    assert first.value("sandfleet_queue_paused", queue="nobody") == 0
    watched.fleet.state.pause(Pause("nobody", "me", time.time(), "a test"))
    assert watched.of_fleet().value("sandfleet_queue_paused", queue="nobody") == 1
    saw("queue_paused")


def test_redis_that_fills_up_and_is_read(watched: Watched) -> None:
    redis = watched.havoc.redis
    assert "sandfleet_redis_memory_used_ratio" not in watched.of_fleet().names
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"]) + (40 << 20))
    first = watched.of_fleet()
    second = first
    for number in range(60):  # the allocator decides how many it takes
        redis.set(f"filling:{number}", b"x" * (1 << 19), ex=60)
        second = watched.of_fleet()
        if second.value("sandfleet_redis_memory_used_ratio") > 0.72:
            break
    assert 0 < first.value("sandfleet_redis_memory_used_ratio") < second.value("sandfleet_redis_memory_used_ratio") < 1
    assert second.value("sandfleet_redis_memory_used_ratio") > 0.7
    saw("redis_memory_used_ratio")
    time.sleep(0.01)
    later = watched.of_fleet().value("sandfleet_fleet_read_timestamp_seconds")
    assert first.value("sandfleet_fleet_read_timestamp_seconds") < later
    assert abs(time.time() - later) < 5
    saw("fleet_read_timestamp_seconds")


def test_a_cold_and_a_warm_start(watched: Watched) -> None:
    stock = watched.havoc.stock
    cold = watched.start(SANDFLEET_WARM__SIZE="0")
    stock.outcome(stock.submit("true"))
    found = watched.of_worker(cold)
    assert found.value("sandfleet_warm_takes_total", result="miss") == 1
    assert found.value("sandfleet_warm_takes_total", result="hit") == 0
    assert found.value("sandfleet_sandbox_boot_seconds_bucket", kind="cold", le="+Inf") == 1
    assert found.value("sandfleet_sandbox_boot_seconds_sum", kind="cold") > 0.01
    saw("sandbox_boot_seconds")
    cold.stop()

    warm = watched.start(SANDFLEET_WARM__IMAGES="busybox")

    def has_spare() -> bool:
        return watched.of_worker(warm).value("sandfleet_warm_sandboxes") > 0

    wait_until(has_spare, 120, "a spare is up; a host without an idle core boots none")
    stock.outcome(stock.submit("true"))
    assert watched.of_worker(warm).value("sandfleet_warm_takes_total", result="hit") == 1
    saw("warm_takes_total")


def test_the_series_of_every_alert_were_seen() -> None:
    used = {re.sub(r"_bucket$", "", name) for rule in read_rules() for name in NAME.findall(rule["expr"])}
    elsewhere = {"sandfleet_history_lost_total"}  # tests/integration/history/test_metrics.py
    assert used - elsewhere <= SEEN
