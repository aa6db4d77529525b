"""The rounds and jobs of a run: on two cores, about 25 minutes for all parts of the full run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Rounds and jobs of each part."""

    latency_rounds: int
    python_latency_rounds: int
    burst_rounds: int
    burst_sizes: tuple[int, ...]
    throughput_rounds: int
    at_once: tuple[int, ...]
    """Concurrencies beside two jobs a core, which keeps all cores busy; Python runs only there."""
    jobs_a_slot: int
    bulk_rounds: int
    bulk_jobs: int
    stock_bulk_jobs: int
    trials: int
    in_flight: int
    prefork_children: int
    queued: tuple[int, ...]
    growth_rounds: int
    measured_jobs: int
    """Of each length of queue in each round, and twice that for each number of workers."""
    workers: tuple[int, ...]
    limit_clients: tuple[int, ...]
    limit_jobs: int
    redis_jobs: int
    file_jobs: int
    history_rows: int
    prepared_rounds: int
    data_rounds: int
    """Of jobs that import numpy and pandas."""
    prepared_jobs: int
    data_jobs: int


FULL = Counts(
    latency_rounds=40,
    python_latency_rounds=20,
    burst_rounds=3,
    burst_sizes=(8, 16),
    throughput_rounds=3,
    at_once=(1, 2, 4, 8),
    jobs_a_slot=8,
    bulk_rounds=2,
    bulk_jobs=50_000,
    stock_bulk_jobs=1_000,
    trials=2,
    in_flight=200,
    prefork_children=20,
    queued=(1_000, 10_000, 100_000),
    growth_rounds=2,
    measured_jobs=700,
    workers=(1, 2, 4, 8, 16),
    limit_clients=(1, 2),
    limit_jobs=12_000,
    redis_jobs=300,
    file_jobs=24,
    history_rows=1_000_000,
    prepared_rounds=12,
    data_rounds=8,
    prepared_jobs=48,
    data_jobs=16,
)
QUICK = Counts(
    latency_rounds=8,
    python_latency_rounds=4,
    burst_rounds=1,
    burst_sizes=(8,),
    throughput_rounds=1,
    at_once=(),
    jobs_a_slot=6,
    bulk_rounds=1,
    bulk_jobs=20_000,
    stock_bulk_jobs=500,
    trials=1,
    in_flight=60,
    prefork_children=8,
    queued=(1_000, 10_000),
    growth_rounds=1,
    measured_jobs=600,
    workers=(1, 2),
    limit_clients=(2,),
    limit_jobs=5_000,
    redis_jobs=100,
    file_jobs=6,
    history_rows=50_000,
    prepared_rounds=3,
    data_rounds=2,
    prepared_jobs=12,
    data_jobs=4,
)
