"""The tables of a report, as Markdown, by name. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from sandbench.goals import judge
from sandbench.programs import BARE_PYTHON, TRUE
from sandbench.scale import render_scale
from sandbench.stats import NOISY_SPREAD, median_ratio, spread, summarize
from sandbench.ways import BARE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sandbench.figures import Figures, Rounds

BAR_CELLS = 10
SHORT_PARTS = (
    f"`{TRUE.name}`, submit",
    f"`{BARE_PYTHON.name}`, submit",
    f"`{TRUE.name}`, jobs/s",
    "enqueue",
    "collect",
)
"""How the goals begin that the README shows."""


def render_blocks(figures: Figures) -> dict[str, str]:
    """Return each block of the report under its name; a part not measured is an empty block."""
    return {
        "machine": render_machine(figures),
        "goals": render_goals(figures),
        "short": render_short(figures),
        "latency": render_latency(figures),
        "bursts": render_bursts(figures),
        "throughput": render_throughput(figures),
        "cost": render_cost(figures),
        "bulk": render_bulk(figures),
        "recovery": render_recovery(figures),
        "growth": render_growth(figures),
        "redis": render_redis_use(figures),
        "prepared": render_prepared(figures),
        "files": render_file_rate(figures),
        "history": render_history(figures),
        "scale": render_scale(figures),
        "absent": render_absent(figures),
    }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, all others to the right."""
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def bar(score: float) -> str:
    """Return how far a goal is reached, as ten cells and a percentage; a full bar if exceeded."""
    full = max(0, min(BAR_CELLS, round(score * BAR_CELLS)))
    if score < 1:
        full = min(full, BAR_CELLS - 1)  # a full bar is a goal that is met
    return f"`{'█' * full}{'░' * (BAR_CELLS - full)}` {score:.0%}"


def render_machine(figures: Figures) -> str:
    """Say where and when, and how noisy it was."""
    machine = figures.machine
    expedited = ", rcu_expedited" if machine.is_rcu_expedited else ""
    text = (
        f"{machine.date}, {machine.cores} cores ({machine.cpu}), {machine.memory_gib:g} GiB, Linux {machine.kernel}{expedited}, "
        f"cgroup v{machine.cgroup_version}, runsc {machine.runsc} (systrap), Redis {machine.redis}, Python {machine.python}, "
        f"sandfleet {machine.commit}; load {machine.load_at_start:g} at the start, {figures.took_seconds / 60:.1f} minutes"
        f"{' (--quick)' if figures.is_quick else ''}."
    )
    return f"{text} {render_noise(figures)}".rstrip()


def render_noise(figures: Figures) -> str:
    """Say how far the same bare run varied."""
    latency = figures.find_latency(TRUE.name)
    if latency is None:
        return ""
    share = spread(latency.ms[BARE])
    told = f"The middle 80 % of the bare runs lie {share:.0%} of their median apart"
    return f"{told}: a noisy machine, trust the ratios only." if share > NOISY_SPREAD else f"{told}."


def render_goals(figures: Figures) -> str:
    """Return each goal with its bar; below the table, why the missed ones are missed."""
    goals = judge(figures)
    if not goals:
        return ""
    rows = [
        [
            goal.what,
            goal.baseline,
            f"**{goal.found}**",
            goal.wanted,
            f"{bar(goal.score)} {'met' if goal.is_met else 'missed'}",
        ]
        for goal in goals
    ]
    text = table(["what", "to beat, same run", "here", "goal", "goal reached"], rows)
    missed: dict[str, list[str]] = {}
    for goal in goals:
        if not goal.is_met:
            missed.setdefault(goal.reason, []).append(goal.what)
    reasons = [f"- {'; '.join(names)}: {reason}." for reason, names in missed.items()]
    return "\n".join([text, "", "Missed, why, and what comes next:", "", *reasons]) if reasons else text


def render_short(figures: Figures) -> str:
    """Return the goals of `SHORT_PARTS`, a line each, for the README; the goals block has all."""
    goals = [goal for goal in judge(figures) if goal.what.startswith(SHORT_PARTS)]
    rows = [[goal.what, f"**{goal.found}**", goal.baseline, goal.wanted, bar(goal.score)] for goal in goals]
    return table(["what", "here", "to beat, same run", "goal", "reached"], rows) if rows else ""


def render_latency(figures: Figures) -> str:
    """Return percentiles of each way, and its ratio to bare runsc of the same round."""
    parts: list[str] = []
    for item in figures.latency:
        rows = []
        for way, values in item.ms.items():
            found = summarize(values)
            ratio = median_ratio(values, item.ms[BARE])
            rows.append([way, f"{found.p50:.1f}", f"{found.p95:.1f}", f"{found.p99:.1f}", f"{ratio:.2f}"])
        rounds = len(item.ms[BARE])
        head = [f"`{item.program}`, {rounds} rounds", "p50 ms", "p95 ms", "p99 ms", "of bare"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def render_bursts(figures: Figures) -> str:
    """Return when half of a burst, and all of it, had ended."""
    parts = []
    for item in figures.bursts:
        rows = [
            [way, _median(item.median_ms, way), _median(item.last_ms, way), _ratio(item.last_ms, way)]
            for way in item.last_ms
        ]
        head = [f"`{item.program}`, {item.size} at once", "half ended, ms", "all ended, ms", "of bare"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def _median(rounds: Rounds, way: str) -> str:
    return f"{statistics.median(rounds[way]):.0f}"


def _ratio(rounds: Rounds, way: str) -> str:
    return f"{median_ratio(rounds[way], rounds[BARE]):.2f}"


def render_throughput(figures: Figures) -> str:
    """Return jobs a second at each concurrency, with the ratio to bare runsc."""
    parts = []
    for program in dict.fromkeys(item.program for item in figures.throughput):
        items = [item for item in figures.throughput if item.program == program]
        rows = [
            [
                way,
                *(f"{statistics.median(item.per_second[way]):.1f} ({_ratio(item.per_second, way)})" for item in items),
            ]
            for way in items[0].per_second
        ]
        parts.append(table([f"`{program}`, jobs/s (of bare)", *(f"{item.at_once} at once" for item in items)], rows))
    return "\n\n".join(parts)


def render_cost(figures: Figures) -> str:
    """Return CPU and memory a job."""
    head = ["CPU ms a job", "sandbox", "worker", "Redis", "producer", "in all", "peak MiB"]
    rows = []
    for item in figures.cost:
        parts = (item.sandbox_cpu_ms, item.worker_cpu_ms, item.redis_cpu_ms, item.producer_cpu_ms, item.total_cpu_ms)
        rows.append([f"{item.way}, `{item.program}`", *map(_number, parts), _number(item.memory_peak_mib)])
    text = table(head, rows) if rows else ""
    memory = figures.in_flight
    if memory is None:
        return text
    told = (
        f"A worker's own memory (PSS): {memory.idle_worker_mib:.0f} MiB idle, {memory.worker_mib:.0f} MiB with {memory.jobs} "
        f"jobs in flight. Stock prefork with {memory.children} children: {memory.prefork_mib:.0f} MiB, "
        f"{memory.prefork_child_mib:.0f} MiB a child, and a child runs one job."
    )
    return f"{text}\n\n{told}".strip()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def render_bulk(figures: Figures) -> str:
    """Return jobs a second into the queue and out of it."""
    bulk = figures.bulk
    if bulk is None:
        return ""
    rows = [[f"enqueue: {way}", f"{statistics.median(rates):,.0f}"] for way, rates in bulk.enqueue_per_second.items()]
    rows += [[f"collect: {way}", f"{statistics.median(rates):,.0f}"] for way, rates in bulk.collect_per_second.items()]
    return table([f"one process; {bulk.jobs:,} jobs, stock {bulk.stock_jobs:,}", "jobs/s"], rows)


def render_recovery(figures: Figures) -> str:
    """Say how long the jobs of killed workers waited."""
    recovery = figures.recovery
    if recovery is None:
        return ""
    low, high = min(recovery.seconds), max(recovery.seconds)
    return (
        f"{len(recovery.seconds)} jobs of workers that were killed with -9 started on another worker {low:.1f} to {high:.1f} s "
        f"after the kill; the lease is {recovery.lease_seconds:g} s."
    )


def render_growth(figures: Figures) -> str:
    """Return what a job costs around its sandbox, as queue and fleet grow."""
    head = ["stand-in jobs", "jobs/s", "worker CPU, µs a job", "Redis CPU, µs a job", "Redis calls a job"]
    rows = []
    for row in figures.growth:
        what = f"{row.number:,} queued, 1 worker" if row.kind == "queued" else f"{row.number} workers"
        cpu = (f"{row.worker_cpu_us:,.0f}", f"{row.redis_cpu_us:,.0f}")
        rows.append([what, f"{row.per_second:,.0f}", *cpu, f"{row.redis_calls:.1f}"])
    return table(head, rows) if rows else ""


def render_redis_use(figures: Figures) -> str:
    """Say what a job asks of Redis."""
    use = figures.redis_use
    if use is None:
        return ""
    jobs, told = (
        f"{use.jobs} jobs in {use.seconds:.0f} s",
        f"sends it {use.input_bytes:,.0f} bytes and gets {use.output_bytes:,.0f}",
    )
    return (
        f"From submit to outcome, each of {jobs} calls {use.script_calls:.2f} scripts in Redis, {told}, by Redis's own counters;"
        " the worker's beats and looks in vain are in it."
    )


def render_prepared(figures: Figures) -> str:
    """Return the time of one job, and jobs a second, of each way on each release of runsc."""
    parts = []
    for item in figures.prepared:
        rows = []
        for way, values in item.ms.items():
            ratio, rate = median_ratio(item.ms[BARE], values), statistics.median(item.per_second[way])
            rows.append([way, f"{statistics.median(values):.1f}", f"{ratio:.1f}x", f"{rate:.1f}"])
        head = [f"`{item.program}`, runsc {item.release}", "p50 ms", "faster", f"jobs/s, {item.at_once} at once"]
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def render_file_rate(figures: Figures) -> str:
    """Say how fast files enter and leave sandboxes."""
    rate = figures.file_rate
    if rate is None:
        return ""
    return (
        f"{rate.jobs} jobs that each read a file of {rate.file_mib} MiB and left one, two at once, with a store in a folder:"
        f" {rate.mib_per_second:.0f} MiB/s in and out together; `cp` of the same bytes: {rate.copied_mib_per_second:.0f} MiB/s."
        f" The worker had {rate.worker_mib_before:.0f} MiB before and {rate.worker_mib_after:.0f} MiB after."
    )


def render_history(figures: Figures) -> str:
    """Say how fast runs are stored, and the slowest questions."""
    past = figures.history
    if past is None:
        return ""
    slowest = sorted(past.ms.items(), key=lambda item: -item[1])[:5]
    return (
        f"A history of {past.rows:,} ended runs takes {past.size_bytes / past.rows:.0f} bytes for each, and stores"
        f" {past.rows / past.store_seconds:,.0f} a second. Of {len(past.ms)} questions of pages and lists the slowest:\n\n"
        + table(("question", "ms"), [(name, f"{ms:.1f}") for name, ms in slowest])
    )


def render_absent(figures: Figures) -> str:
    """Say what could not be measured here, and why."""
    return "\n".join(f"- {way}: {reason}" for way, reason in figures.absent.items())
