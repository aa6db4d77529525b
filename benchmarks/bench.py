"""Measure sandfleet beside bare `runsc run`, stock Celery and other sandboxes, all in one run.

Run it by `make bench` (25 minutes; fewer rounds by ARGS="--quick"). Machines are noisy: quote
the ratios, not the milliseconds. At its end it stops and removes everything that it started.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from sandbench.chosen_runsc import put_runsc_first
from sandbench.counts import FULL, QUICK
from sandbench.figures import Figures
from sandbench.machine import read_machine
from sandbench.publish import publish
from sandbench.tables import render_blocks
from sandbench.testbed import new_testbed

if TYPE_CHECKING:
    from sandbench.counts import Counts
    from sandbench.testbed import Testbed

RESULTS = Path(__file__).parent / "results"
JSON, MARKDOWN = "latest.json", "latest.md"
PARTS = (
    "latency",
    "bursts",
    "throughput",
    "memory",
    "bulk",
    "recovery",
    "growth",
    "limit",
    "processes",
    "prepared",
    "redis",
    "files",
    "history",
)
NO_MATPLOTLIB = "no pictures: matplotlib is not installed (make bench installs it: pip install --group bench)"
console = Console(highlight=False)


def main() -> None:
    """Measure the requested parts, print the report, and write it to `benchmarks/results/`."""
    options = _read_options()
    if options.publish:
        figures = Figures.model_validate_json((RESULTS / JSON).read_text())
        _draw(figures)  # again: the goals may have changed since the run
        for path in publish(figures, RESULTS):
            console.print(f"wrote {path}")
        return
    if os.geteuid() != 0:
        sys.exit("sandboxes with limits, and counting what they use, need root")
    put_runsc_first()
    earlier = Figures.model_validate_json((RESULTS / JSON).read_text()) if options.add else None
    figures = measure(options)
    figures = earlier.joined(figures) if earlier else figures
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / JSON).write_text(figures.model_dump_json(indent=1))
    text = "\n\n".join(f"## {name}\n\n{block}" for name, block in render_blocks(figures).items() if block)
    (RESULTS / MARKDOWN).write_text(f"# Benchmark\n\n{text}\n")
    _draw(figures)
    console.print(text, markup=False)
    console.print(
        f"\n{RESULTS / MARKDOWN}, {JSON} and the pictures beside it; --publish puts them into README and docs"
    )


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, short queues")
    parser.add_argument("--only", help=f"some parts only, with commas between: {','.join(PARTS)}")
    parser.add_argument(
        "--add", action="store_true", help="with --only: keep the other parts of the last run, of the same code and day"
    )
    parser.add_argument("--images", type=Path, help="an image store that has busybox and python; made anew by default")
    parser.add_argument("--publish", action="store_true", help="measure nothing: put the last run into README and docs")
    for kind, name in (("tako", "Tako VM"), ("temenos", "temenos")):
        text = f"the interpreter that has {name}; this one by default"
        parser.add_argument(f"--{kind}-python", type=Path, default=Path(sys.executable), help=text)
    options = parser.parse_args()
    options.parts = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return options


def measure(options: argparse.Namespace) -> Figures:
    """Run the parts one after another on a testbed of their own."""
    counts = QUICK if options.quick else FULL
    machine, began = read_machine(), time.monotonic()
    absent: dict[str, str] = {}
    found: dict[str, Any] = {}
    with new_testbed(options.images) as testbed:
        if {"latency", "bursts"} & set(options.parts):
            found |= _measure_idle(testbed, counts, options, absent)
        for part in options.parts:
            if part not in ("latency", "bursts"):
                found |= _timed(part, testbed, counts, absent)
    took = time.monotonic() - began
    return Figures.model_validate(
        {"machine": machine, "is_quick": options.quick, "took_seconds": took, "absent": absent, **found}
    )


def _measure_idle(
    testbed: Testbed, counts: Counts, options: argparse.Namespace, absent: dict[str, str]
) -> dict[str, Any]:
    from sandbench.latency import idle_ways, measure_bursts, measure_latencies
    from sandbench.queue_way import NO_WARM, knows_warm
    from sandbench.ways import WARM

    if not knows_warm():
        absent[WARM] = NO_WARM
    began = time.monotonic()
    found: dict[str, Any] = {}
    pythons = {"tako": options.tako_python, "temenos": options.temenos_python}
    with idle_ways(testbed, _count_cores()) as ways:
        if "latency" in options.parts:
            found["latency"] = measure_latencies(testbed, ways, counts, pythons, absent)
        if "bursts" in options.parts:
            found["bursts"] = measure_bursts(ways, counts)
    console.print(f"latency and bursts: {time.monotonic() - began:.0f} s")
    return found


def _timed(part: str, testbed: Testbed, counts: Counts, absent: dict[str, str]) -> dict[str, Any]:
    began = time.monotonic()
    found = _measure_part(part, testbed, counts, absent)
    console.print(f"{part}: {time.monotonic() - began:.0f} s")
    return found


def _measure_part(part: str, testbed: Testbed, counts: Counts, absent: dict[str, str]) -> dict[str, Any]:
    from sandbench.bulk import measure_bulk
    from sandbench.file_rate import measure_file_rate
    from sandbench.growth import measure_growth
    from sandbench.memory import measure_in_flight
    from sandbench.one_worker import measure_one_worker
    from sandbench.recovery import measure_recovery
    from sandbench.redis_limit import measure_limit, measure_store
    from sandbench.redis_use import measure_redis_use
    from sandbench.throughput import measure_saturated
    from sandbench.worker_processes import measure_worker_processes

    match part:
        case "throughput":
            throughput, cost = measure_saturated(testbed, counts, _count_cores())
            return {"throughput": throughput, "cost": cost}
        case "memory":
            return {"in_flight": measure_in_flight(testbed, counts)}
        case "bulk":
            return {"bulk": measure_bulk(testbed, counts)}
        case "recovery":
            return {"recovery": measure_recovery(testbed, counts)}
        case "growth":
            growth, upkeep = measure_growth(testbed, counts)
            return {"growth": growth, "upkeep": upkeep}
        case "files":
            return {"file_rate": measure_file_rate(testbed, counts)}
        case "history":
            from sandbench.past import measure_history

            return {"history": measure_history(testbed, counts.history_rows)}
        case "prepared":
            from sandbench.prepared_starts import measure_prepared

            return {"prepared": measure_prepared(testbed, counts, absent)}
        case "processes":
            return {"worker_processes": measure_worker_processes(testbed, counts)}
        case "redis":
            return {"redis_use": measure_redis_use(testbed, counts.redis_jobs)}
        case _:
            one_worker = measure_one_worker(testbed, counts)
            return {
                "one_worker": one_worker,
                "limit": list(measure_limit(testbed, counts)),
                "store": measure_store(testbed),
            }


def _count_cores() -> int:
    return len(os.sched_getaffinity(0))


def _draw(figures: Figures) -> None:
    for old in RESULTS.glob("*.png"):
        old.unlink()
    try:
        from sandbench.plots import write_plots
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        console.print(NO_MATPLOTLIB)
        return
    write_plots(figures, RESULTS)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
