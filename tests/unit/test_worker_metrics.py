"""A worker's metrics: names as Prometheus wants them, few series whatever comes, little time a job."""

from __future__ import annotations

import errno
import re
import socket
import socketserver
import time
import timeit
import urllib.request
from typing import TYPE_CHECKING, NoReturn

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sandfleet_config.codes import ErrorCode
from sandfleet_config.metric_names import MAX_SERIES, METRICS, OTHER, WORKER_METRICS
from sandfleet_config.metrics_settings import MetricsSettings
from sandfleet_config.outcome import Outcome, Runtime, Timing, Usage
from sandfleet_worker.metrics.busiest_names import MAX_WATCHED, BusiestNames
from sandfleet_worker.metrics.counts import MAX_HOSTS, MAX_QUEUES, REVIEW_SECONDS, STARTS, JobCounts
from sandfleet_worker.metrics.endpoint import open_endpoint
from sandfleet_worker.metrics.families import WorkerCollector, WorkerGauges, keep_busiest

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.core import Metric

UNITS = ("seconds", "bytes", "ratio", "info", "total")
COUNTED = ("jobs", "slots", "workers", "sandboxes", "running", "waiting", "busy", "delayed", "parked", "letters")
"""Ends of names of gauges that count things; those are their units."""
FLAGS = ("state", "paused", "quarantined")
FORBIDDEN = {"job", "job_id", "batch", "label", "labels", "message", "command", "line", "user", "claim"}


def new_outcome(code: ErrorCode = ErrorCode.OK, *, warm: bool = True, queued: float = 0.02, start: str = "") -> Outcome:
    return Outcome.of(
        code,
        "j",
        duration=0.3,
        timing=Timing(queued=queued, image=0.0001, create=0.04, run=0.3, collect=0.001, cleanup=0.002),
        usage=Usage(cpu_seconds=0.25, memory_peak_bytes=20 << 20),
        runtime=Runtime(warm=warm),
        **({"start": start} if start else {}),
    )


def read(counts: JobCounts, gauges: WorkerGauges | None = None) -> dict[str, Metric]:
    registry = CollectorRegistry()
    registry.register(WorkerCollector(counts, lambda: gauges or WorkerGauges()))
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def value_of(found: dict[str, Metric], name: str, **labels: str) -> float:
    samples = [sample for family in found.values() for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


@pytest.mark.parametrize("name", sorted(METRICS))
def test_names_follow_the_rules(name: str) -> None:
    kind, meaning, labels = METRICS[name]
    assert re.fullmatch(r"sandfleet_[a-z]+(_[a-z]+)*", name)
    assert name.endswith("_total") == (kind == "counter")
    assert name.rpartition("_")[2] in (*UNITS, *COUNTED, *FLAGS)
    assert not name.endswith(("_count", "_sum", "_bucket", "_created"))
    assert meaning.endswith(".")
    assert FORBIDDEN.isdisjoint(labels)


def test_what_is_served_is_what_is_named() -> None:
    counts = JobCounts()
    counts.note_start("q")
    counts.note_end("q", new_outcome())
    counts.note_attempt("h", ErrorCode.OK)
    counts.note_call("claim", 0.001)
    found = read(counts, WorkerGauges(warm={"python": 2}, prepared_misses={"no_spare": 1}))
    served = {f"{name}_total" if family.type == "counter" else name: family for name, family in found.items()}
    assert {name: family.type for name, family in served.items()} == {
        name: metric.kind for name, metric in WORKER_METRICS.items()
    }
    for name, family in served.items():
        own = {"le"} if family.type == "histogram" else set[str]()
        assert {tuple(sorted(set(sample.labels) - own)) for sample in family.samples} == {
            tuple(sorted(WORKER_METRICS[name].labels))
        }
        assert family.documentation == WORKER_METRICS[name].meaning


def test_ends_are_counted() -> None:
    counts = JobCounts()
    for code in (ErrorCode.OK, ErrorCode.OK, ErrorCode.TIMEOUT):
        counts.note_start("rl")
        counts.note_end("rl", new_outcome(code, queued=3.0))
    counts.note_end("rl", new_outcome(ErrorCode.OK, warm=False))
    counts.note_end("rl", Outcome.of(ErrorCode.SPEC_INVALID, "j", "x", timing=Timing(queued=0.1)))
    counts.note_attempt("h", ErrorCode.INTERNAL)
    counts.note_redis_error()
    found = read(counts)
    assert value_of(found, "sandfleet_jobs_started_total", queue="rl") == 3
    assert value_of(found, "sandfleet_jobs_ended_total", queue="rl", code="OK", category="ok") == 3
    assert value_of(found, "sandfleet_jobs_ended_total", code="SPEC_INVALID", category="request") == 1
    assert value_of(found, "sandfleet_attempts_ended_total", host="h", code="INTERNAL", category="host") == 1
    assert value_of(found, "sandfleet_job_queue_seconds_count", queue="rl") == 5
    assert value_of(found, "sandfleet_job_queue_seconds_bucket", queue="rl", le="1.0") == 2
    assert value_of(found, "sandfleet_job_queue_seconds_bucket", queue="rl", le="+Inf") == 5
    assert value_of(found, "sandfleet_job_run_seconds_count", queue="rl") == 4
    assert value_of(found, "sandfleet_job_run_seconds_sum", queue="rl") == pytest.approx(1.2)
    assert value_of(found, "sandfleet_job_step_seconds_count", step="create") == 4
    assert value_of(found, "sandfleet_sandbox_boot_seconds_count", kind="cold") == 1
    assert value_of(found, "sandfleet_warm_takes_total", result="hit") == 3
    assert value_of(found, "sandfleet_job_cpu_seconds_total") == 1.0
    assert value_of(found, "sandfleet_job_memory_peak_bytes_bucket", le=str(float(1 << 26))) == 4
    assert value_of(found, "sandfleet_redis_errors_total") == 1


def test_starts_are_counted_by_kind_and_misses_by_reason() -> None:
    counts = JobCounts()
    for start in ("prepared", "prepared", "warm", "of a newer release"):
        counts.note_end("q", new_outcome(start=start))
    counts.note_end("q", new_outcome(warm=False))
    counts.note_end("q", Outcome.of(ErrorCode.CANCELLED, "j", "x"))
    found = read(counts, WorkerGauges(prepared_misses={"no_spare": 3, "command": 1}, quarantined=2))
    started = {kind: value_of(found, "sandfleet_sandbox_starts_total", start=kind) for kind in STARTS}
    assert started == {"prepared": 2, "warm": 1, "cold": 2}
    assert value_of(found, "sandfleet_sandbox_boot_seconds_count", kind="prepared") == 2
    assert value_of(found, "sandfleet_prepared_misses_total", reason="no_spare") == 3
    assert value_of(found, "sandfleet_prepared_misses_total") == 4
    assert value_of(found, "sandfleet_preparations_quarantined") == 2


def test_500_queues_with_every_code_and_many_images_and_hosts_are_few_series() -> None:
    counts, expected = JobCounts(), 0
    for number in range(500):
        for code in ErrorCode:
            counts.note_start(f"queue-{number}")
            counts.note_end(f"queue-{number}", new_outcome(code))
            counts.note_attempt(f"host-{number}", code)
            expected += 1
    for number in range(40):
        counts.note_call(f"script-{number}", 0.001)
    found = read(counts, WorkerGauges(warm={f"image-{number}": number for number in range(300)}))
    assert sum(len(family.samples) for family in found.values()) <= MAX_SERIES
    assert value_of(found, "sandfleet_jobs_ended_total") == expected
    queues = {sample.labels["queue"] for sample in found["sandfleet_jobs_ended"].samples}
    assert len(queues) == MAX_QUEUES + 1
    assert OTHER in queues
    assert len({sample.labels["host"] for sample in found["sandfleet_attempts_ended"].samples}) == MAX_HOSTS + 1
    assert value_of(found, "sandfleet_warm_sandboxes") == sum(range(300))
    assert value_of(found, "sandfleet_warm_sandboxes", image="image-299") == 299


def test_a_queue_that_becomes_busy_gets_series_and_no_counter_goes_back() -> None:
    now = [0.0]
    counts = JobCounts(lambda: now[0])
    for number in range(MAX_QUEUES + 5):
        counts.note_end(f"queue-{number}", new_outcome())
    for _ in range(50):
        counts.note_end("queue-24", new_outcome())
    before = read(counts)
    assert value_of(before, "sandfleet_jobs_ended_total", queue=OTHER) == 55
    now[0] += REVIEW_SECONDS + 1
    read(counts)
    for _ in range(10):
        counts.note_end("queue-24", new_outcome())
    after = read(counts)
    assert value_of(after, "sandfleet_jobs_ended_total", queue="queue-24") == 10
    assert value_of(after, "sandfleet_jobs_ended_total", queue=OTHER) == 55
    assert len({sample.labels["queue"] for sample in after["sandfleet_jobs_ended"].samples}) <= MAX_QUEUES + 1


def test_names_without_series_are_bounded() -> None:
    names = BusiestNames(2)
    for number in range(10 * MAX_WATCHED):
        names.find(f"{number}-{'x' * 1000}")
    assert len(names._watched) == MAX_WATCHED
    assert max(map(len, names._watched)) == 120
    assert names.review() == []


def test_the_busiest_are_kept() -> None:
    assert keep_busiest({"a": 1, "b": 5, "c": 2}, 2) == {"b": 5, "c": 2, OTHER: 1}
    assert keep_busiest({OTHER: 9, "b": 5, "c": 2}, 2) == {OTHER: 11, "b": 5}


def test_a_strange_label_stays_one_line() -> None:
    counts = JobCounts()
    counts.note_end('a"b\\c\nd', new_outcome())
    found = read(counts)
    assert value_of(found, "sandfleet_jobs_ended_total", queue='a"b\\c\nd') == 1


def test_a_job_costs_some_microseconds() -> None:
    counts, outcome = JobCounts(), new_outcome()

    def job() -> None:
        counts.note_start("q")
        counts.note_attempt("h", ErrorCode.OK)
        counts.note_end("q", outcome)
        for script in ("claim", "finish"):
            counts.note_call(script, 0.0005)

    assert measure(job) < 60e-6


def measure(act: Callable[[], None]) -> float:
    return min(timeit.repeat(act, number=500, repeat=5)) / 500


def test_without_descriptors_the_endpoint_does_not_spin_and_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def fail(_server: object) -> NoReturn:
        calls.append(time.monotonic())
        if len(calls) >= 3:
            monkeypatch.undo()
        raise OSError(errno.EMFILE, "Too many open files")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with open_endpoint(MetricsSettings(port=port), JobCounts(), WorkerGauges):
        monkeypatch.setattr(socketserver.TCPServer, "get_request", fail)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert answer.status == 200
    assert len(calls) == 3
    assert calls[-1] - calls[0] > 0.9
