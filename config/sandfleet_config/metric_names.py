"""Every metric of sandfleet: name, type, labels and meaning, for both sides, the docs and the tests.

Names follow Prometheus: one prefix, base units, ``_total`` for counters. No job id, batch, label of
a job, message or command is ever a label. `queue`, `image` and `host` name the busiest; the rest of
them is ``other``.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

MetricType = Literal["counter", "gauge", "histogram", "summary"]
OTHER: Final = "other"
"""The value of a label for all that have no series of their own."""
MAX_SERIES: Final = 2000
"""Most series of one process."""


class Metric(NamedTuple):
    """A metric as Prometheus reads it."""

    kind: MetricType
    meaning: str
    labels: tuple[str, ...] = ()


WORKER_METRICS: Final = {
    "sandfleet_jobs_started_total": Metric("counter", "Programs that started on this worker.", ("queue",)),
    "sandfleet_jobs_ended_total": Metric(
        "counter", "Jobs whose end this worker recorded; none that a producer cancelled.", ("queue", "code", "category")
    ),
    "sandfleet_attempts_ended_total": Metric(
        "counter",
        "Attempts that ended, retried or final, by the host where they ran; without those that a drain cut.",
        ("host", "code", "category"),
    ),
    "sandfleet_job_queue_seconds": Metric("histogram", "From submit to the last attempt of an ended job.", ("queue",)),
    "sandfleet_job_run_seconds": Metric("histogram", "From the start of a program to its end.", ("queue",)),
    "sandfleet_job_step_seconds": Metric("histogram", "Each step of a job's last attempt.", ("step",)),
    "sandfleet_sandbox_boot_seconds": Metric(
        "histogram", "Until a job had its sandbox: a spare (warm, prepared), or one that booted (cold).", ("kind",)
    ),
    "sandfleet_job_cpu_seconds_total": Metric("counter", "CPU time of ended jobs' sandboxes."),
    "sandfleet_job_memory_peak_bytes": Metric("histogram", "Most memory of an ended job's sandbox."),
    "sandfleet_worker_jobs_running": Metric("gauge", "Jobs whose sandboxes run on this worker."),
    "sandfleet_worker_jobs_waiting": Metric("gauge", "Jobs of this worker that wait for their start."),
    "sandfleet_host_slots": Metric("gauge", "Slots of the host, which its workers share."),
    "sandfleet_host_slots_busy": Metric("gauge", "Slots of the host that are taken, by any of its workers."),
    "sandfleet_warm_sandboxes": Metric("gauge", "Spares that are up.", ("image",)),
    "sandfleet_warm_takes_total": Metric("counter", "Programs that ran in a spare (hit) or not (miss).", ("result",)),
    "sandfleet_sandbox_starts_total": Metric(
        "counter", "Programs that ran, by their start: cold, warm or prepared.", ("start",)
    ),
    "sandfleet_prepared_misses_total": Metric(
        "counter", "Programs that asked for a prepared spare and started without one, by the reason.", ("reason",)
    ),
    "sandfleet_preparations_quarantined": Metric("gauge", "Preparations that failed too often and are left alone."),
    "sandfleet_warm_boot_failures_total": Metric("counter", "Spares that failed to boot."),
    "sandfleet_lease_margin_seconds": Metric("gauge", "What is left of the worker's lease."),
    "sandfleet_leases_lost_total": Metric("counter", "1 if another worker has taken this one's jobs over."),
    "sandfleet_takeovers_total": Metric("counter", "Dead workers whose jobs this worker took over."),
    "sandfleet_redis_errors_total": Metric("counter", "Calls that Redis did not answer, or refused."),
    "sandfleet_redis_call_seconds": Metric("summary", "Calls of scripts in Redis.", ("script",)),
    "sandfleet_worker_state": Metric("gauge", "1 for the state of this worker, 0 for the others.", ("state",)),
    "sandfleet_build_info": Metric("gauge", "Always 1; the labels say what runs.", ("version", "runsc", "platform")),
}
FLEET_METRICS: Final = {
    "sandfleet_queue_jobs": Metric("gauge", "Jobs that wait in a queue.", ("queue", "state")),
    "sandfleet_queue_oldest_age_seconds": Metric("gauge", "How long the oldest job of a queue has waited.", ("queue",)),
    "sandfleet_queue_age_target_seconds": Metric("gauge", "How long a job of the queue may wait at most.", ("queue",)),
    "sandfleet_queue_workers": Metric("gauge", "Live workers that take jobs of a queue.", ("queue",)),
    "sandfleet_queue_paused": Metric("gauge", "1 if an operator paused the queue.", ("queue",)),
    "sandfleet_jobs_delayed": Metric("gauge", "Jobs that wait for another attempt."),
    "sandfleet_jobs_parked": Metric("gauge", "Jobs that wait until their batch lets them go."),
    "sandfleet_workers": Metric("gauge", "Workers with a lease, by state.", ("state",)),
    "sandfleet_fleet_slots": Metric("gauge", "Slots of all hosts."),
    "sandfleet_fleet_slots_busy": Metric("gauge", "Slots of all hosts that are taken."),
    "sandfleet_dead_letters": Metric("gauge", "Dead letters."),
    "sandfleet_duplicates_total": Metric(
        "counter", "Runs and messages that did not count: a job was elsewhere by then."
    ),
    "sandfleet_redis_memory_used_ratio": Metric("gauge", "Used part of Redis's maxmemory; absent without one."),
    "sandfleet_history_lag_seconds": Metric("gauge", "Age of the oldest ended run that is not in the history yet."),
    "sandfleet_history_lost_total": Metric("counter", "Ended runs that left Redis before the history had them."),
    "sandfleet_history_bytes": Metric("gauge", "Size of the history file."),
    "sandfleet_fleet_read_timestamp_seconds": Metric("gauge", "When Redis was read for these metrics, by its clock."),
    "sandfleet_web_loop_lag_seconds": Metric("gauge", "How late the loop that serves the pages is."),
}
METRICS: Final = WORKER_METRICS | FLEET_METRICS
