"""Measure how fast one producer submits jobs and collects outcomes, beside stock Celery."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import TYPE_CHECKING

from celery import states
from celery.result import ResultSet
from sandfleet import Fleet, Settings
from sandfleet_config.celery import celery_url

from sandbench.figures import Bulk
from sandbench.growth import end_all
from sandbench.programs import TRUE
from sandbench.stock_celery import TASK, new_app
from sandbench.ways import STOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery
    from sandfleet import SandboxSpec

    from sandbench.counts import Counts
    from sandbench.testbed import Server, Testbed

OURS = "sandfleet"
OURS_ONE_SPEC = "sandfleet, one spec for all"
BATCH_STREAM, HANDLES = "sandfleet, a batch's stream", "sandfleet, as_completed(jobs)"
STOCK_GET, STOCK_JOIN = "stock Celery, get each", "stock Celery, join_native"
TIMEOUT_SECONDS = 300.0


def measure_bulk(testbed: Testbed, counts: Counts) -> Bulk:
    """Submit and collect by each client in turn."""
    enqueue: dict[str, list[float]] = {STOCK: [], OURS_ONE_SPEC: [], OURS: []}
    collect: dict[str, list[float]] = {STOCK_GET: [], STOCK_JOIN: [], HANDLES: [], BATCH_STREAM: []}
    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(testbed.serve_redis(testbed.new_name("redis")))
        ours = stack.enter_context(testbed.serve_redis(testbed.new_name("redis")))
        app = stack.enter_context(contextlib.closing(new_app(celery_url(theirs.url))))
        fleet = stack.enter_context(Fleet(Settings.model_validate({"redis_url": ours.url})))
        for number in range(counts.bulk_rounds):
            enqueue[STOCK].append(_enqueue_stock(app, counts.stock_bulk_jobs))
            same = [TRUE.spec] * counts.bulk_jobs
            enqueue[OURS_ONE_SPEC].append(_enqueue(fleet, f"same{number}", same))
            del same
            ours.client.flushall()
            specs = [TRUE.spec.model_copy(update={"labels": {"name": f"job {n}"}}) for n in range(counts.bulk_jobs)]
            enqueue[OURS].append(_enqueue(fleet, f"bulk{number}", specs))
            del specs
            for name, rate in _collect_stock(app, theirs, counts.stock_bulk_jobs):
                collect[name].append(rate)
            end_all(ours, fleet.batch(f"bulk{number}").job_ids, f"bulk{number}")
            for name, rate in _collect(fleet, f"bulk{number}", counts.bulk_jobs):
                collect[name].append(rate)
            ours.client.flushall()
    return Bulk(
        jobs=counts.bulk_jobs,
        stock_jobs=counts.stock_bulk_jobs,
        enqueue_per_second=enqueue,
        collect_per_second=collect,
    )


def _enqueue(fleet: Fleet, batch: str, specs: Sequence[SandboxSpec]) -> float:
    began = time.perf_counter()
    fleet.submit_many(specs, batch=batch, idempotent=True)
    return len(specs) / (time.perf_counter() - began)


def _enqueue_stock(app: Celery, jobs: int) -> float:
    task = app.tasks[TASK]
    task.delay(TRUE.name)  # connects
    began = time.perf_counter()
    for _ in range(jobs):
        task.delay(TRUE.name)
    return jobs / (time.perf_counter() - began)


def _collect(fleet: Fleet, batch: str, jobs: int) -> list[tuple[str, float]]:
    handles = fleet.batch(batch).job_ids
    found = []
    for name, stream in (
        (HANDLES, fleet.as_completed(handles, timeout=TIMEOUT_SECONDS)),
        (BATCH_STREAM, fleet.batch(batch).as_completed(timeout=TIMEOUT_SECONDS)),
    ):
        began = time.perf_counter()
        ended = sum(outcome.is_ok for outcome in stream)
        found.append((name, jobs / (time.perf_counter() - began)))
        if ended != jobs:
            raise RuntimeError(f"{name}: {ended} of {jobs} outcomes")
    return found


def _collect_stock(app: Celery, server: Server, jobs: int) -> list[tuple[str, float]]:
    """Store results as a worker's backend does, and read them by Celery's two ways."""
    server.client.flushall()
    ids = [str(uuid.uuid4()) for _ in range(2 * jobs)]
    for task_id in ids:
        app.backend.store_result(task_id, None, states.SUCCESS)
    results = [app.AsyncResult(task_id) for task_id in ids]
    began = time.perf_counter()
    for result in results[:jobs]:
        result.get(timeout=TIMEOUT_SECONDS)
    middle = time.perf_counter()
    ResultSet(results[jobs:], app=app).join_native(timeout=TIMEOUT_SECONDS)
    return [(STOCK_GET, jobs / (middle - began)), (STOCK_JOIN, jobs / (time.perf_counter() - middle))]
