"""The fleet's metrics: from one summary, few series, and no queue in trouble left out."""

from __future__ import annotations

from typing import Any

import pytest
from sandfleet.channel.fleet_state import FleetSummary, Pause, QueueState, WorkerStatus
from sandfleet.history.questions import HistoryStatus
from sandfleet_config.metric_names import FLEET_METRICS, MAX_SERIES, OTHER
from sandfleet_web.metrics.fleet_metrics import MAX_QUEUES, AgeTargets, render_fleet_metrics
from scrape import Scraped


def render(summary: FleetSummary, *more: Any) -> Scraped:
    return Scraped(render_fleet_metrics(summary, *more).decode())


FULL = FleetSummary(
    at=1000.0,
    workers=(
        WorkerStatus(owner="h:1:a", host="h", state="up", slots=4, busy=3),
        WorkerStatus(owner="h:2:a", host="h", state="up", slots=4, busy=2),
        WorkerStatus(owner="i:1:a", host="i", state="cordoned", slots=2, busy=0),
    ),
    queues=(
        QueueState(name="rl", waiting={0: 2, 6: 3}, oldest=400.0, workers=2),
        QueueState(name="p", waiting={0: 1}, oldest=900.0, pause=Pause("p", "me", 1.0, "x")),
        QueueState(name="empty", workers=1),
    ),
    delayed=3,
    parked=4,
    dead_letters=5,
    duplicates=6,
    redis_used=75,
    redis_max=100,
)


def test_every_named_metric_is_there() -> None:
    found = render(FULL, HistoryStatus(at=1000.0, lost=2, lag_seconds=1.5, size_bytes=99), None, 0.01)
    served = {f"{name}_total" if family.type == "counter" else name: family for name, family in found.families.items()}
    assert {name: family.type for name, family in served.items()} == {
        name: metric.kind for name, metric in FLEET_METRICS.items()
    }
    for name, family in served.items():
        assert {tuple(sample.labels) for sample in family.samples} == {FLEET_METRICS[name].labels}
    assert found.value("sandfleet_history_lost_total") == 2
    assert found.value("sandfleet_history_lag_seconds") == 1.5
    assert found.value("sandfleet_web_loop_lag_seconds") == 0.01


def test_values() -> None:
    found = render(FULL, None, AgeTargets(300.0, {"p": 60.0}))
    assert found.value("sandfleet_queue_jobs", queue="rl", state="waiting") == 5
    assert found.value("sandfleet_queue_oldest_age_seconds", queue="rl") == 600
    assert found.value("sandfleet_queue_oldest_age_seconds", queue="empty") == 0
    assert found.value("sandfleet_queue_age_target_seconds", queue="rl") == 300
    assert found.value("sandfleet_queue_age_target_seconds", queue="p") == 60
    assert found.value("sandfleet_queue_workers", queue="rl") == 2
    assert found.value("sandfleet_queue_paused", queue="p") == 1
    assert found.value("sandfleet_workers", state="up") == 2
    assert found.value("sandfleet_workers", state="cordoned") == 1
    assert found.value("sandfleet_fleet_slots") == 6, "workers of a host share its slots"
    assert found.value("sandfleet_fleet_slots_busy") == 3
    assert found.value("sandfleet_duplicates_total") == 6
    assert found.value("sandfleet_redis_memory_used_ratio") == 0.75
    assert found.value("sandfleet_fleet_read_timestamp_seconds") == 1000
    assert "sandfleet_history_bytes" not in found.names


def test_nobody_there() -> None:
    found = render(FleetSummary(at=1.0))
    assert found.value("sandfleet_workers", state="up") == 0
    assert 'sandfleet_workers{state="up"} 0.0' in found.text
    assert "sandfleet_redis_memory_used_ratio" not in found.names


@pytest.mark.parametrize("stuck", ["queue-0499", "queue-0250"])
def test_500_queues_are_few_series_and_the_one_in_trouble_is_named(stuck: str) -> None:
    queues = [
        QueueState(name=f"queue-{n:04}", waiting={0: n + 1}, oldest=500.0 - n / 10, workers=1) for n in range(500)
    ]
    queues = [QueueState(name=q.name, waiting={0: 1}, oldest=999.0) if q.name == stuck else q for q in queues]
    found = render(FleetSummary(at=1000.0, queues=tuple(queues)))
    assert found.series <= MAX_SERIES
    assert found.value("sandfleet_queue_workers", queue=stuck) == 0
    assert found.value("sandfleet_queue_jobs", queue=stuck) == 1
    assert found.value("sandfleet_queue_jobs") == sum(q.total for q in queues)
    names = {sample.labels["queue"] for sample in found.families["sandfleet_queue_jobs"].samples}
    assert len(names) == MAX_QUEUES + 1
    assert found.value("sandfleet_queue_workers", queue=OTHER) == 1


def test_others_say_the_worst_of_them() -> None:
    queues = [QueueState(name=f"a{n:03}", waiting={0: 1}, oldest=1.0) for n in range(MAX_QUEUES)]
    queues += [
        QueueState(name="b", waiting={0: 2}, oldest=500.0),
        QueueState(name="c", waiting={0: 3}, oldest=600.0, workers=4),
        QueueState(name="d", pause=Pause("d", "me", 1.0, "x")),
    ]
    found = render(FleetSummary(at=1000.0, queues=tuple(queues)), None, AgeTargets(300.0, {"c": 100.0}))
    values = {name: found.value(f"sandfleet_queue_{name}", queue=OTHER) for name in ("jobs", "workers", "paused")}
    assert values == {"jobs": 5, "workers": 0, "paused": 0}
    assert found.value("sandfleet_queue_oldest_age_seconds", queue=OTHER) == 500
    assert found.value("sandfleet_queue_age_target_seconds", queue=OTHER) == 100


def test_a_strange_name_stays_one_line() -> None:
    found = render(FleetSummary(at=1.0, queues=(QueueState(name='a"b\\\n', waiting={0: 1}),)))
    assert found.value("sandfleet_queue_jobs", queue='a"b\\\n') == 1
