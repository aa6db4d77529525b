"""Measure the limit of one Redis by processes that only claim and finish, and each step's cost."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from typing import TYPE_CHECKING, Any

import redis
from sandfleet import Fleet, Settings
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger

from sandbench.calls import RESULT_TTL_SECONDS, Calls, send
from sandbench.figures import Limit, Store
from sandbench.growth import MICROS, new_outcome
from sandbench.programs import TRUE
from sandbench.stand_in import OUTPUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.synchronize import Barrier

    from sandbench.counts import Counts
    from sandbench.testbed import Server, Testbed

LEASE_SECONDS = 300.0
AT_ONCE = 20
"""Jobs a round trip."""
START_SECONDS = 30.0
SAMPLE_JOBS = 2_000


def measure_limit(testbed: Testbed, counts: Counts) -> Iterator[Limit]:
    """Measure growing numbers of clients that take jobs as fast as they can."""
    for clients in counts.limit_clients:
        with (
            testbed.serve_redis(testbed.new_name("redis")) as server,
            Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
        ):
            jobs = clients * counts.limit_jobs
            fleet.submit_many([TRUE.spec] * jobs, batch="limit")
            seconds, cpu = _drain(server, clients)
            done = fleet.batch("limit").counts.done
            if done != jobs:
                raise RuntimeError(f"{done} of {jobs} jobs ended")
            rate = jobs / seconds
            yield Limit(clients=clients, per_second=rate, redis_busy=cpu / seconds, redis_cpu_us=cpu / jobs * MICROS)


def _drain(server: Server, clients: int) -> tuple[float, float]:
    """Return the seconds that `clients` processes take for all queued jobs, and Redis's CPU."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(clients + 1)
    processes = [context.Process(target=_take_all, args=(server.url, start), daemon=True) for _ in range(clients)]
    for process in processes:
        process.start()
    start.wait(START_SECONDS)
    began, cpu = time.perf_counter(), server.read_cpu_seconds()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a client ended with {process.exitcode}")
    return time.perf_counter() - began, server.read_cpu_seconds() - cpu


def _take_all(url: str, start: Barrier) -> None:
    """Claim and end jobs until none is queued, many a round trip, without the rest of a worker."""
    with redis.Redis.from_url(url, protocol=2) as client:
        identity = Identity.new("limit")
        ledger, calls = Ledger(client, identity, RESULT_TTL_SECONDS), Calls(identity)
        ledger.register(LEASE_SECONDS)
        calls.load(client)
        model = new_outcome("", "limit")
        start.wait(START_SECONDS)
        for first in itertools.count(0, AT_ONCE):
            ids = [f"claim{number}" for number in range(first, first + AT_ONCE)]
            answers = send(client, [calls.claim(claim_id) for claim_id in ids])
            jobs = {claim_id: answer[1] for claim_id, answer in zip(ids, answers, strict=True) if answer[0] == b"job"}
            if not jobs:
                break
            ends = {claim_id: model.model_copy(update={"job_id": job_id.decode()}) for claim_id, job_id in jobs.items()}
            send(client, [calls.finish(claim_id, outcome) for claim_id, outcome in ends.items()])
        ledger.leave()


def measure_store(testbed: Testbed) -> Store:
    """Submit, run and collect some jobs, and see after each step what Redis used."""
    with (
        testbed.serve_redis(testbed.new_name("redis")) as server,
        Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
    ):
        fleet.submit_many([TRUE.spec] * 10, batch="first")
        _drain(server, 1)  # scripts and buffers are there from now on
        server.client.config_resetstat()
        memory, cpu, network = server.read_memory_bytes(), server.read_cpu_seconds(), server.read_network_bytes()
        handles = fleet.submit_many([TRUE.spec] * SAMPLE_JOBS, batch="store", idempotent=True)
        submit_cpu, queued = server.read_cpu_seconds() - cpu, server.read_memory_bytes() - memory
        _drain(server, 1)
        ended = server.read_memory_bytes() - memory
        cpu = server.read_cpu_seconds()
        for _ in fleet.as_completed(handles, timeout=START_SECONDS):
            pass
        collect_cpu = server.read_cpu_seconds() - cpu
        return Store(
            queued_bytes=queued / SAMPLE_JOBS,
            ended_bytes=ended / SAMPLE_JOBS,
            output_bytes=len(OUTPUT),
            network_bytes=(server.read_network_bytes() - network) / SAMPLE_JOBS,
            submit_cpu_us=submit_cpu / SAMPLE_JOBS * MICROS,
            collect_cpu_us=collect_cpu / SAMPLE_JOBS * MICROS,
            commands=_read_commands(server),
        )


def _read_commands(server: Server) -> dict[str, tuple[float, float]]:
    facts: dict[str, Any] = server.read("commandstats")
    found = {
        name.removeprefix("cmdstat_"): (fact["calls"] / SAMPLE_JOBS, float(fact["usec_per_call"]))
        for name, fact in facts.items()
    }
    return {name: pair for name, pair in sorted(found.items(), key=_by_time) if pair[0] >= 0.01}  # noqa: PLR2004  one in a hundred jobs


def _by_time(item: tuple[str, tuple[float, float]]) -> float:
    calls, micros = item[1]
    return -calls * micros
