"""The fleet's gauges as Prometheus's text: queues, workers, Redis, history.

They come from one place, so that a sum over all targets never counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_LATEST  # noqa: PLC0414
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from sandfleet_config.metric_names import FLEET_METRICS, OTHER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sandfleet.channel.fleet_state import FleetSummary, QueueState
    from sandfleet.history.questions import HistoryStatus

STATES: Final = ("up", "cordoned", "draining", "drained", "stopping", "late")
MAX_QUEUES: Final = 100
MAX_NAME_CHARS: Final = 120
DEFAULT_AGE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class AgeTargets:
    """How long a job of a queue may wait at most, in seconds: one for all, others by queue."""

    seconds: float = DEFAULT_AGE_SECONDS
    queues: Mapping[str, float] = field(default_factory=dict[str, float])

    def find(self, queue: str) -> float:
        """Return the target of a queue."""
        return self.queues.get(queue, self.seconds)


@dataclass(frozen=True, slots=True)
class _QueueFacts:
    """The figures of a queue, or of all queues without series of their own."""

    waiting: int
    age: float
    target: float
    workers: int
    is_paused: bool


class FleetCollector(Collector):
    """Gives the fleet's metrics, as they were read, to a registry.

    `history` is None if there is no history file here, `loop_lag` if no pages are served.
    """

    def __init__(
        self,
        summary: FleetSummary,
        history: HistoryStatus | None = None,
        targets: AgeTargets | None = None,
        loop_lag: float | None = None,
    ) -> None:
        self._summary, self._history = summary, history
        self._targets, self._loop_lag = targets or AgeTargets(), loop_lag

    def collect(self) -> Iterator[Metric]:
        """Return all metrics."""
        yield from self._list_queues()
        yield from self._list_workers()
        summary = self._summary
        yield _new("sandfleet_jobs_delayed", {(): summary.delayed})
        yield _new("sandfleet_jobs_parked", {(): summary.parked})
        yield _new("sandfleet_dead_letters", {(): summary.dead_letters})
        yield _new("sandfleet_duplicates_total", {(): summary.duplicates})
        if summary.redis_max > 0:
            yield _new("sandfleet_redis_memory_used_ratio", {(): summary.redis_used / summary.redis_max})
        yield _new("sandfleet_fleet_read_timestamp_seconds", {(): summary.at})
        if self._history is not None:
            yield _new("sandfleet_history_lag_seconds", {(): self._history.lag_seconds})
            yield _new("sandfleet_history_lost_total", {(): self._history.lost})
            yield _new("sandfleet_history_bytes", {(): self._history.size_bytes})
        if self._loop_lag is not None:
            yield _new("sandfleet_web_loop_lag_seconds", {(): self._loop_lag})

    def _list_queues(self) -> Iterator[Metric]:
        queues = self._choose_queues()
        yield _new("sandfleet_queue_jobs", {(name, "waiting"): facts.waiting for name, facts in queues.items()})
        yield _new("sandfleet_queue_oldest_age_seconds", {(name,): facts.age for name, facts in queues.items()})
        yield _new("sandfleet_queue_age_target_seconds", {(name,): facts.target for name, facts in queues.items()})
        yield _new("sandfleet_queue_workers", {(name,): facts.workers for name, facts in queues.items()})
        yield _new("sandfleet_queue_paused", {(name,): int(facts.is_paused) for name, facts in queues.items()})

    def _choose_queues(self) -> dict[str, _QueueFacts]:
        """Return the queues to name, those that need somebody first, and all others as one."""
        ordered = sorted(self._summary.queues, key=self._rank)
        named = {queue.name[:MAX_NAME_CHARS]: self._describe(queue) for queue in ordered[:MAX_QUEUES]}
        rest = [self._describe(queue) for queue in ordered[MAX_QUEUES:]]
        return named | {OTHER: _join([named[OTHER], *rest] if OTHER in named else rest)} if rest else named

    def _rank(self, queue: QueueState) -> tuple[bool, float, int, str]:
        is_stuck = bool(queue.total) and not queue.is_served
        return (not is_stuck, queue.oldest or float("inf"), -queue.total, queue.name)

    def _describe(self, queue: QueueState) -> _QueueFacts:
        age = max(0.0, self._summary.at - queue.oldest) if queue.oldest else 0.0
        return _QueueFacts(queue.total, age, self._targets.find(queue.name), queue.workers, queue.pause is not None)

    def _list_workers(self) -> Iterator[Metric]:
        workers = self._summary.workers
        states: dict[tuple[str, ...], float] = {(state,): 0.0 for state in STATES}
        slots, busy = dict[str, int](), dict[str, int]()
        for worker in workers:
            states[(worker.state,)] = states.get((worker.state,), 0.0) + 1
            # The workers of a host share its slots.
            slots[worker.host] = max(slots.get(worker.host, 0), worker.slots)
            busy[worker.host] = max(busy.get(worker.host, 0), worker.busy)
        yield _new("sandfleet_workers", states)
        yield _new("sandfleet_fleet_slots", {(): sum(slots.values())})
        yield _new("sandfleet_fleet_slots_busy", {(): sum(busy.values())})


def _join(queues: Sequence[_QueueFacts]) -> _QueueFacts:
    """Return several queues as one: the worst of each, so that no alert stays away."""
    waiting = [queue for queue in queues if queue.waiting] or queues
    return _QueueFacts(
        waiting=sum(queue.waiting for queue in queues),
        age=max(queue.age for queue in queues),
        target=min(queue.target for queue in queues),
        workers=min(queue.workers for queue in waiting),
        is_paused=all(queue.is_paused for queue in waiting),
    )


def _new(name: str, values: Mapping[tuple[str, ...], float]) -> Metric:
    """Return a metric with its values by labels."""
    known = FLEET_METRICS[name]
    if known.kind == "counter":
        family: CounterMetricFamily | GaugeMetricFamily = CounterMetricFamily(
            name.removesuffix("_total"), known.meaning, labels=known.labels
        )
    else:
        family = GaugeMetricFamily(name, known.meaning, labels=known.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def render_fleet_metrics(
    summary: FleetSummary,
    history: HistoryStatus | None = None,
    targets: AgeTargets | None = None,
    loop_lag: float | None = None,
) -> bytes:
    """Return the body of an answer to Prometheus; its content type is `CONTENT_TYPE_LATEST`."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(summary, history, targets, loop_lag))
    return generate_latest(registry)
