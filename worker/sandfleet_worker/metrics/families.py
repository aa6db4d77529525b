"""A worker's counts and gauges as Prometheus's text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from sandfleet_config.metric_names import OTHER, WORKER_METRICS

from sandfleet_worker.metrics.counts import UNKNOWN_CODE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sandfleet_config.codes import ErrorCode

    from sandfleet_worker.metrics.counts import CallTimes, JobCounts
    from sandfleet_worker.metrics.histogram import Histogram

STATES: Final = ("up", "cordoned", "draining", "drained", "stopping", "late")
MAX_IMAGES: Final = 20
MAX_LABEL_CHARS: Final = 120


@dataclass(frozen=True, kw_only=True)
class WorkerGauges:
    """A worker as it is at the moment; `lease_margin` is seconds, `warm` spares by image.

    `prepared_misses` are counted by reason, from the worker's start.
    """

    state: str = "up"
    running: int = 0
    waiting: int = 0
    slots: int = 0
    busy: int = 0
    warm: Mapping[str, int] = field(default_factory=dict)
    boot_failures: int = 0
    prepared_misses: Mapping[str, int] = field(default_factory=dict)
    quarantined: int = 0
    lease_margin: float = 0.0
    leases_lost: int = 0
    takeovers: int = 0
    version: str = ""
    runsc: str = ""
    platform: str = ""


class WorkerCollector(Collector):
    """Gives a worker's metrics to a registry; `read_gauges` may be called in any thread."""

    def __init__(self, counts: JobCounts, read_gauges: Callable[[], WorkerGauges]) -> None:
        self._counts, self._read_gauges = counts, read_gauges

    def collect(self) -> Iterator[Metric]:
        """Return all metrics as they are now."""
        self._counts.review()
        with self._counts.lock:
            counted = [*self._read_counters(), *self._read_histograms()]
        yield from counted
        yield from list_gauges(self._read_gauges())

    def _read_counters(self) -> Iterator[Metric]:
        counts = self._counts
        yield new_counter("sandfleet_jobs_started_total", {(queue,): n for queue, n in counts.started.items()})
        yield new_counter("sandfleet_jobs_ended_total", _name_codes(counts.ended))
        yield new_counter("sandfleet_attempts_ended_total", _name_codes(counts.attempts))
        yield new_counter("sandfleet_warm_takes_total", {(result,): n for result, n in counts.takes.items()})
        yield new_counter("sandfleet_sandbox_starts_total", {(start,): n for start, n in counts.starts.items()})
        yield new_counter("sandfleet_job_cpu_seconds_total", {(): counts.cpu_seconds})
        yield new_counter("sandfleet_redis_errors_total", {(): counts.redis_errors})
        yield _new_summary("sandfleet_redis_call_seconds", counts.calls)

    def _read_histograms(self) -> Iterator[Metric]:
        counts = self._counts
        yield _new_histogram("sandfleet_job_queue_seconds", counts.queued)
        yield _new_histogram("sandfleet_job_run_seconds", counts.ran)
        yield _new_histogram("sandfleet_job_step_seconds", counts.steps)
        yield _new_histogram("sandfleet_sandbox_boot_seconds", counts.boots)
        yield _new_histogram("sandfleet_job_memory_peak_bytes", {"": counts.memory_peaks})


def list_gauges(now: WorkerGauges) -> Iterator[Metric]:
    """Yield what a worker is at the moment, and counters that others keep."""
    plain = {
        "sandfleet_worker_jobs_running": now.running,
        "sandfleet_worker_jobs_waiting": now.waiting,
        "sandfleet_host_slots": now.slots,
        "sandfleet_host_slots_busy": now.busy,
        "sandfleet_lease_margin_seconds": now.lease_margin,
        "sandfleet_preparations_quarantined": now.quarantined,
    }
    for name, value in plain.items():
        yield new_gauge(name, {(): value})
    yield new_gauge("sandfleet_warm_sandboxes", {(image,): n for image, n in keep_busiest(now.warm).items()})
    yield new_gauge("sandfleet_worker_state", {(state,): float(state == now.state) for state in STATES})
    yield new_gauge("sandfleet_build_info", {(now.version, now.runsc, now.platform): 1})
    yield new_counter("sandfleet_warm_boot_failures_total", {(): now.boot_failures})
    yield new_counter("sandfleet_prepared_misses_total", {(why,): n for why, n in now.prepared_misses.items()})
    yield new_counter("sandfleet_leases_lost_total", {(): now.leases_lost})
    yield new_counter("sandfleet_takeovers_total", {(): now.takeovers})


def keep_busiest(counts: Mapping[str, int], limit: int = MAX_IMAGES) -> dict[str, int]:
    """Return the largest counts by name, and the sum of the others as ``other``."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept: dict[str, int] = {}
    for place, (name, count) in enumerate(ordered):
        label = name[:MAX_LABEL_CHARS] if place < limit else OTHER
        kept[label] = kept.get(label, 0) + count
    return kept


def _name_codes(table: Mapping[tuple[str, ErrorCode], int]) -> dict[tuple[str, ...], float]:
    named: dict[tuple[str, ...], float] = {}
    for (label, code), count in table.items():
        key = (label, code.value if code.is_known else UNKNOWN_CODE, code.category.value)
        named[key] = named.get(key, 0) + count
    return named


def new_counter(name: str, values: Mapping[tuple[str, ...], float]) -> Metric:
    """Return a counter with the values by labels."""
    known = WORKER_METRICS[name]
    family = CounterMetricFamily(name.removesuffix("_total"), known.meaning, labels=known.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def new_gauge(name: str, values: Mapping[tuple[str, ...], float]) -> Metric:
    """Return a gauge with the values by labels."""
    known = WORKER_METRICS[name]
    family = GaugeMetricFamily(name, known.meaning, labels=known.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _new_summary(name: str, times: Mapping[str, CallTimes]) -> Metric:
    known = WORKER_METRICS[name]
    family = SummaryMetricFamily(name, known.meaning, labels=known.labels)
    for label, called in times.items():
        family.add_metric([label], called.count, called.seconds)
    return family


def _new_histogram(name: str, histograms: Mapping[str, Histogram]) -> Metric:
    known = WORKER_METRICS[name]
    family = HistogramMetricFamily(name, known.meaning, labels=known.labels)
    for label, histogram in histograms.items():
        state = histogram.read()
        family.add_metric([label] if known.labels else [], state.buckets, state.total)
    return family
