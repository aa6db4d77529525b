"""How fast is it, side by side in one run: bare `runsc run`, stock Celery, others where installed, and the whole queue.

Run it by `make bench` (ARGS="--quick" for a glance). Machines are noisy: quote the ratios, not the milliseconds. Everything it
starts is its own and is gone at its end.
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
from sandbench.counts import FULL, QUICK
from sandbench.figures import Figures
from sandbench.ground import prepared
from sandbench.machine import read_machine
from sandbench.publish import publish
from sandbench.tables import render_blocks

if TYPE_CHECKING:
    from sandbench.counts import Counts
    from sandbench.ground import Ground

RESULTS = Path(__file__).parent / "results"
JSON, MARKDOWN = "latest.json", "latest.md"
PARTS = ("latency", "bursts", "throughput", "memory", "bulk", "recovery", "growth", "limit", "redis")
NO_MATPLOTLIB = "no pictures: matplotlib is not installed (make bench installs it: pip install --group bench)"
console = Console(highlight=False)


def main() -> None:
    """Measure the parts that are asked for, print the report, and keep it in `benchmarks/results/`."""
    options = _read_options()
    if options.publish:
        figures = Figures.model_validate_json((RESULTS / JSON).read_text())
        _draw(figures)  # anew: the goals may be told otherwise than when they were measured
        for path in publish(figures, RESULTS):
            console.print(f"wrote {path}")
        return
    if os.geteuid() != 0:
        sys.exit("sandboxes with limits, and counting what they use, need root")
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
    parser.add_argument("--quick", action="store_true", help="two minutes instead of eight: few rounds, short queues")
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
    """Run the parts one after another on ground that is gone afterwards."""
    counts = QUICK if options.quick else FULL
    machine, began = read_machine(), time.monotonic()
    absent: dict[str, str] = {}
    found: dict[str, Any] = {}
    with prepared(options.images) as ground:
        if {"latency", "bursts"} & set(options.parts):
            found |= _measure_idle(ground, counts, options, absent)
        for part in options.parts:
            if part not in ("latency", "bursts"):
                found |= _timed(part, ground, counts)
    took = time.monotonic() - began
    return Figures.model_validate(
        {"machine": machine, "is_quick": options.quick, "took_seconds": took, "absent": absent, **found}
    )


def _measure_idle(
    ground: Ground, counts: Counts, options: argparse.Namespace, absent: dict[str, str]
) -> dict[str, Any]:
    from sandbench.queue_way import NO_WARM, knows_warm
    from sandbench.single import idle_ways, measure_bursts, measure_latencies
    from sandbench.ways import WARM

    if not knows_warm():
        absent[WARM] = NO_WARM
    began = time.monotonic()
    found: dict[str, Any] = {}
    pythons = {"tako": options.tako_python, "temenos": options.temenos_python}
    with idle_ways(ground, _count_cores()) as ways:
        if "latency" in options.parts:
            found["latency"] = measure_latencies(ground, ways, counts, pythons, absent)
        if "bursts" in options.parts:
            found["bursts"] = measure_bursts(ways, counts)
    console.print(f"latency and bursts: {time.monotonic() - began:.0f} s")
    return found


def _timed(part: str, ground: Ground, counts: Counts) -> dict[str, Any]:
    began = time.monotonic()
    found = _measure_part(part, ground, counts)
    console.print(f"{part}: {time.monotonic() - began:.0f} s")
    return found


def _measure_part(part: str, ground: Ground, counts: Counts) -> dict[str, Any]:
    from sandbench.bulk import measure_bulk
    from sandbench.growth import measure_growth
    from sandbench.limit import measure_limit, measure_store
    from sandbench.memory import measure_in_flight
    from sandbench.one_worker import measure_one_worker
    from sandbench.recovery import measure_recovery
    from sandbench.redis_use import measure_redis_use
    from sandbench.saturated import measure_saturated

    match part:
        case "throughput":
            throughput, cost = measure_saturated(ground, counts, _count_cores())
            return {"throughput": throughput, "cost": cost}
        case "memory":
            return {"in_flight": measure_in_flight(ground, counts)}
        case "bulk":
            return {"bulk": measure_bulk(ground, counts)}
        case "recovery":
            return {"recovery": measure_recovery(ground, counts)}
        case "growth":
            growth, upkeep = measure_growth(ground, counts)
            return {"growth": growth, "upkeep": upkeep}
        case "redis":
            return {"redis_use": measure_redis_use(ground, counts.redis_jobs)}
        case _:
            one_worker = measure_one_worker(ground, counts)
            return {
                "one_worker": one_worker,
                "limit": list(measure_limit(ground, counts)),
                "store": measure_store(ground),
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
