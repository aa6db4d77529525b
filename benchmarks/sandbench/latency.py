"""The parts on an idle machine: latency of single jobs, and bursts."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.runner import RunscRunner

from sandbench.bare_runsc import BareRunsc
from sandbench.figures import Burst, Latency
from sandbench.other_sandboxes import other_ways
from sandbench.programs import BARE_PYTHON, IMAGES, TRUE
from sandbench.queue_way import queue_ways
from sandbench.runner_way import RunnerWay
from sandbench.stock_celery import stock_way

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sandbench.counts import Counts
    from sandbench.programs import Program
    from sandbench.testbed import Testbed
    from sandbench.ways import SingleWay, Way

MS = 1000
SLOTS_A_CORE = 4
SETTLE_SECONDS = 0.15
"""Pause between two single jobs: the pool of spares refills, at no cost to the next way's time."""
SETTLE_AFTER_BURST_SECONDS = 1.0


@contextlib.contextmanager
def idle_ways(testbed: Testbed, cores: int) -> Iterator[list[Way]]:
    """Make every way of ours and the two to compare with, with slots for a burst."""
    rootfs = {image: testbed.unpack(image) for image in IMAGES}
    slots = SLOTS_A_CORE * cores
    with contextlib.ExitStack() as stack:
        bare = BareRunsc(testbed.new_folder("bare"), rootfs)
        stock = stack.enter_context(stock_way(testbed, rootfs, slots))
        runner = stack.enter_context(RunscRunner(testbed.host_settings(testbed.new_root())))
        queues = stack.enter_context(queue_ways(testbed, slots))
        yield [bare, stock, RunnerWay(runner), *queues]


def measure_latencies(
    testbed: Testbed, ways: Sequence[Way], counts: Counts, pythons: dict[str, Path], absent: dict[str, str]
) -> list[Latency]:
    """Time each program by each way; `pythons` are the interpreters of other people's sandboxes."""
    with contextlib.ExitStack() as stack:
        every: list[SingleWay] = [*ways]
        for kind, python in pythons.items():
            every += stack.enter_context(other_ways(kind, python, testbed.disk / f"{kind}.log", absent))
        return [
            Latency(program=TRUE.name, ms=_measure_rounds(every, TRUE, counts.latency_rounds)),
            Latency(program=BARE_PYTHON.name, ms=_measure_rounds(every, BARE_PYTHON, counts.python_latency_rounds)),
        ]


def _measure_rounds(ways: Sequence[SingleWay], program: Program, rounds: int) -> dict[str, list[float]]:
    """Run each way in turn, many rounds, so that disturbances of the machine hit all of them."""
    for way in ways:
        way.run(program)  # the first of its kind reads files and, warm, tells the pool what is wanted
    time.sleep(SETTLE_AFTER_BURST_SECONDS)
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            began = time.perf_counter()
            way.run(program)
            found[way.name].append((time.perf_counter() - began) * MS)
            time.sleep(SETTLE_SECONDS)
    return found


def measure_bursts(ways: Sequence[Way], counts: Counts) -> list[Burst]:
    """Request many jobs at once, in many rounds."""
    return [_measure_burst(ways, size, counts.burst_rounds) for size in counts.burst_sizes]


def _measure_burst(ways: Sequence[Way], size: int, rounds: int) -> Burst:
    medians: dict[str, list[float]] = {way.name: [] for way in ways}
    lasts: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            ends = way.run_many(TRUE, size, size).ends
            medians[way.name].append(statistics.median(ends) * MS)
            lasts[way.name].append(ends[-1] * MS)
            time.sleep(SETTLE_AFTER_BURST_SECONDS)
    return Burst(program=TRUE.name, size=size, median_ms=medians, last_ms=lasts)
