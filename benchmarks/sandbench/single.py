"""The parts on an idle machine: latency one by one, and bursts."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.runner import RunscRunner

from sandbench.bare import BareRunsc
from sandbench.figures import Burst, Latency
from sandbench.foreign import foreign_ways
from sandbench.programs import BARE_PYTHON, IMAGES, TRUE
from sandbench.queue_way import queue_ways
from sandbench.runner_way import RunnerWay
from sandbench.stock import stock_way

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sandbench.counts import Counts
    from sandbench.ground import Ground
    from sandbench.programs import Program
    from sandbench.ways import SingleWay, Way

MS = 1000
SLOTS_A_CORE = 4
SETTLE_SECONDS = 0.15
"""Between two single jobs: a pool of warm sandboxes fills up again, and none of the next way's time is spent on it."""
SETTLE_AFTER_BURST_SECONDS = 1.0


@contextlib.contextmanager
def idle_ways(ground: Ground, cores: int) -> Iterator[list[Way]]:
    """Make every way of ours and the two to compare with, with slots for a burst."""
    rootfs = {image: ground.unpack(image) for image in IMAGES}
    slots = SLOTS_A_CORE * cores
    with contextlib.ExitStack() as stack:
        bare = BareRunsc(ground.new_folder("bare"), rootfs)
        stock = stack.enter_context(stock_way(ground, rootfs, slots))
        runner = stack.enter_context(RunscRunner(ground.host_settings(ground.new_root())))
        queues = stack.enter_context(queue_ways(ground, slots))
        yield [bare, stock, RunnerWay(runner), *queues]


def measure_latencies(
    ground: Ground, ways: Sequence[Way], counts: Counts, pythons: dict[str, Path], absent: dict[str, str]
) -> list[Latency]:
    """Time each program by each way; `pythons` are the interpreters of other people's sandboxes."""
    with contextlib.ExitStack() as stack:
        every: list[SingleWay] = [*ways]
        for kind, python in pythons.items():
            every += stack.enter_context(foreign_ways(kind, python, ground.disk / f"{kind}.log", absent))
        return [
            Latency(program=TRUE.name, ms=_measure_rounds(every, TRUE, counts.latency_rounds)),
            Latency(program=BARE_PYTHON.name, ms=_measure_rounds(every, BARE_PYTHON, counts.python_latency_rounds)),
        ]


def _measure_rounds(ways: Sequence[SingleWay], program: Program, rounds: int) -> dict[str, list[float]]:
    """Run each way in turn, again and again: what the machine does meanwhile hits all of them."""
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
    """Ask for many at once, again and again."""
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
