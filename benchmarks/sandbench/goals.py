"""The goals of the project, and the share of each that a run reaches. Pure.

A goal is a bound, or a ratio to another way of the same run.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbench.programs import BARE_PYTHON, DATA, PRINT, PYTHON, TRUE
from sandbench.stats import median_ratio
from sandbench.ways import BARE, COLD, PREPARED, STOCK, WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbench.figures import Figures, Growth, PreparedStarts

OURS = "sandfleet"
BATCH_STREAM = "sandfleet, a batch's stream"
STOCK_JOIN = "stock Celery, join_native"
MAX_GROWTH = 1.25
MOST_QUESTION_MS = 300.0
LEAST_PROCESSES_RATIO = 1.8
STOCK_RECOVERY = "1 h (Celery's visibility timeout, not measured)"
LATENCY_GOALS = ((TRUE.name, 25.0, 4.0, 107.0), (BARE_PYTHON.name, 50.0, 2.66, 133.0))
"""Program, milliseconds, times faster than bare runsc, and runsc's ms when they were set."""
PREPARED_GOALS = {TRUE.name: 14.0, PRINT.name: 20.0, DATA.name: 30.0}
"""Program, and milliseconds from submit to outcome on an idle machine."""
LEAST_DATA_RATIO = 20.0
OLD_RELEASE = "20240729"
LEAST_RATIOS = {TRUE.name: (1.4, 1.35), PYTHON.name: (1.4, 1.23)}
"""Least ratio of the warm way's rate to bare runsc's, on the release of 2024 and on newer ones.

A boot costs the release of 2024 more. The last ratio is that of release e5bcdee.
"""
NO_LOSS_PROGRAMS = (PYTHON.name, DATA.name)
MOST_OUTSIDE_MS = 2.5
NO_LOSS = 0.95
"""Share of the warm way's rate, for two figures of a noisy machine that are the same."""
PREFORK_JOBS_NOTE = "prefork, one child a job"


@dataclass(frozen=True)
class Goal:
    """A row of the table of goals: measure, baseline, our figure, goal, and why it is missed."""

    what: str
    baseline: str
    found: str
    wanted: str
    score: float
    """Share of the goal reached: 1 is the goal, more is better than it."""
    reason: str
    """The reason if it is missed, and the next step."""

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached."""
        return self.score >= 1


NO_WARM = "every job boots its sandbox: this worker has no warm ones. Next: warm sandboxes"
SLOW_HIT = (
    "the milliseconds were set where bare runsc takes {then:.0f}, and it took {now:.0f} in this run; of a hit, four fifths are"
    " the sandbox's own kernel (waking up, system calls, page faults, its end). Next: a newer runsc"
)
LESS_BOOT = (
    "a boot costs runsc this much CPU. Next: a newer runsc, which starts itself less often; EROFS is used already"
)
LESS_CPU = (
    "most of it is the worker's: some 4 ms of Python and system calls (a folder, four cgroups on v1, five pipes, a process;"
    " Celery's tracer, two scripts, three lines of log), and more where sandboxes empty the caches between."
    " Next: cgroup v2 (one folder), and fewer of the system calls at which its threads change places"
)
ENQUEUE = "checking and encoding a job take as long as Redis takes to write its hash. Next: a smaller hash"
COLLECT = (
    "five microseconds decode an outcome and make it, three are sockets and loops. Next: the list of ends and the outcomes"
    " by one script"
)
RECOVERY = "a lease is taken over at the next sweep after its end. Next: sweep at the instant of the next end"
MEMORY = "one thread and its buffers for each job. Next: measure what a job keeps"
LONGER_QUEUE = "a claim finds more in Redis's memory and less in its caches. Next: profile claim.lua on a long queue"
MORE_WORKERS = (
    "what they share, Redis, takes {redis_last:.0f} µs a job for {redis_first:.0f} with one, and {calls_last:.1f} calls for"
    " {calls_first:.1f}, and {rate_last:,.0f} jobs/s end for {rate_first:,.0f}; the workers' own part grows, once so many"
    " processes share {cores} cores and their caches. Next: repeat it with a core for each"
)


PROCESSES = (
    "{busy:.1f} of {cores} cores were busy: with the processes, Redis, the producer and the stand-ins. A job takes"
    " {one_ms:.1f} ms of the worker's CPU with one process and {two_ms:.1f} with two, so with a core for each they would"
    " end {with_cores:.2f}x. Next: repeat it on a machine with more cores"
)


SLOW_KERNEL = "of a hit, most is the sandbox's own kernel (waking up, page faults, its end). Next: a newer runsc"
SLOW_START = "{share} of the single jobs started so; " + SLOW_KERNEL
PREPARED_RATE = "busy cores leave no idle time in which a spare could be prepared. Next: repeat it with more cores"


def judge(figures: Figures) -> list[Goal]:
    """Return the goals whose part was measured."""
    return [
        *_latency(figures),
        *_throughput(figures),
        *_overhead(figures),
        *_bulk(figures),
        *_recovery(figures),
        *_memory(figures),
        *_growth(figures),
        *_processes(figures),
        *_prepared(figures),
        *_history(figures),
    ]


def _latency(figures: Figures) -> Iterator[Goal]:
    for program, most_ms, least_ratio, bare_then in LATENCY_GOALS:
        found = figures.find_latency(program)
        if found is None:
            continue
        way = WARM if WARM in found.ms else COLD
        ours, bare = statistics.median(found.ms[way]), statistics.median(found.ms[BARE])
        reason = SLOW_HIT.format(then=bare_then, now=bare) if way == WARM else NO_WARM
        ratio = median_ratio(found.ms[BARE], found.ms[way])
        what, baseline = f"`{program}`, submit to outcome, idle, p50", f"{bare:.0f} ms, bare runsc"
        yield Goal(what, baseline, f"{ours:.0f} ms ({ratio:.1f}x)", f"under {most_ms:.0f} ms", most_ms / ours, reason)
        what = f"`{program}`, times faster than bare runsc, queue included"
        yield Goal(what, "1x", f"{ratio:.2f}x", f"{least_ratio:g}x", ratio / least_ratio, reason)


def _throughput(figures: Figures) -> Iterator[Goal]:
    for program in LEAST_RATIOS:
        least = _find_least_ratio(program, figures.machine.runsc)
        rates = [item for item in figures.throughput if item.program == program]
        busy = figures.find_throughput(program, 2 * figures.machine.cores) or (rates[-1] if rates else None)
        if busy is None:
            continue
        way = WARM if WARM in busy.per_second else COLD
        ours, bare = statistics.median(busy.per_second[way]), statistics.median(busy.per_second[BARE])
        ratio = median_ratio(busy.per_second[way], busy.per_second[BARE])
        what = f"`{program}`, jobs/s, saturated ({busy.at_once} at once), against bare runsc"
        found = f"{ours:.1f}/s ({ratio:.2f}x)"
        yield Goal(what, f"{bare:.1f}/s, bare runsc", found, f"{least:g}x", ratio / least, LESS_BOOT)


def _find_least_ratio(program: str, release: str) -> float:
    old, new = LEAST_RATIOS[program]
    return old if OLD_RELEASE in release else new


def _overhead(figures: Figures) -> Iterator[Goal]:
    cost = figures.find_cost(TRUE.name, WARM) or figures.find_cost(TRUE.name, COLD)
    outside = cost and cost.outside_ms
    if outside:
        stock = figures.find_cost(TRUE.name, STOCK)
        baseline = f"{stock.outside_ms:.1f} ms, stock Celery" if stock and stock.outside_ms else ""
        what = "fleet's CPU a job: worker, Redis and producer, runsc aside"
        yield _new_outside(what, baseline, outside)


def _new_outside(what: str, baseline: str, ms: float) -> Goal:
    return Goal(what, baseline, f"{ms:.1f} ms", f"under {MOST_OUTSIDE_MS:g} ms", MOST_OUTSIDE_MS / ms, LESS_CPU)


def _bulk(figures: Figures) -> Iterator[Goal]:
    bulk = figures.bulk
    if bulk is None:
        return
    enqueue, collect = bulk.enqueue_per_second, bulk.collect_per_second
    rows = (
        ("enqueue, one producer, `submit_many`, idempotent", enqueue[OURS], enqueue[STOCK], "delay", 20_000, ENQUEUE),
        ("collect a batch's outcomes", collect[BATCH_STREAM], collect[STOCK_JOIN], "join_native", 80_000, COLLECT),
    )
    for what, ours, stock, their_way, least, reason in rows:
        rate, other = statistics.median(ours), statistics.median(stock)
        found = f"{rate / 1000:.1f} k/s ({rate / other:.1f}x)"
        yield Goal(what, f"{other / 1000:.1f} k/s, `{their_way}`", found, f"{least // 1000} k/s", rate / least, reason)


def _recovery(figures: Figures) -> Iterator[Goal]:
    recovery = figures.recovery
    if recovery is None:
        return
    longest, most = max(recovery.seconds), recovery.lease_seconds + 1
    what = "a killed worker's jobs start elsewhere, longest"
    wanted = f"lease + 1 s = {most:g} s"
    yield Goal(what, STOCK_RECOVERY, f"{longest:.1f} s", wanted, most / longest, RECOVERY)


def _memory(figures: Figures) -> Iterator[Goal]:
    memory = figures.in_flight
    if memory is None:
        return
    prefork = memory.jobs * memory.prefork_child_mib / 1024
    what = f"a worker's memory with {memory.jobs} jobs in flight, sandboxes aside"
    baseline = f"{prefork:.1f} GiB, {PREFORK_JOBS_NOTE} (from {memory.children})"
    found = f"{memory.worker_mib:.0f} MiB"
    yield Goal(what, baseline, found, "under 95 MiB (100 MB)", 95.0 / memory.worker_mib, MEMORY)


def _processes(figures: Figures) -> Iterator[Goal]:
    if len(figures.worker_processes) < 2:  # noqa: PLR2004  one to compare with
        return
    one, two = figures.worker_processes[0], figures.worker_processes[-1]
    ratio, with_cores = two.per_second / one.per_second, two.number * one.worker_cpu_us / two.worker_cpu_us
    what = f"{two.number} worker processes on one host (stand-in runsc), jobs/s against one"
    reason = PROCESSES.format(
        busy=two.busy_cores,
        cores=figures.machine.cores,
        one_ms=one.worker_cpu_us / 1000,
        two_ms=two.worker_cpu_us / 1000,
        with_cores=with_cores,
    )
    found = f"{two.per_second:,.0f}/s ({ratio:.2f}x)"
    yield Goal(
        what, f"{one.per_second:,.0f}/s", found, f"{LEAST_PROCESSES_RATIO:g}x", ratio / LEAST_PROCESSES_RATIO, reason
    )


def _prepared(figures: Figures) -> Iterator[Goal]:
    for item in figures.prepared:
        if item.program in PREPARED_GOALS:
            yield from _prepared_start(item)
        if item.program == TRUE.name:
            yield from _saturated_by_release(item)
        if item.program in NO_LOSS_PROGRAMS and PREPARED in item.per_second:
            ours, warm = (statistics.median(item.per_second[way]) for way in (PREPARED, WARM))
            what = f"`{item.program}`, jobs/s, {item.at_once} at once, prepared against warm (runsc {item.release})"
            ratio = median_ratio(item.per_second[PREPARED], item.per_second[WARM])
            score = max(1.0, ratio) if ratio >= NO_LOSS else ratio
            yield Goal(what, f"{warm:.1f}/s", f"{ours:.1f}/s ({ratio:.2f}x)", "no loss", score, PREPARED_RATE)


def _saturated_by_release(item: PreparedStarts) -> Iterator[Goal]:
    least, bare = _find_least_ratio(item.program, item.release), statistics.median(item.per_second[BARE])
    ours, ratio = statistics.median(item.per_second[WARM]), median_ratio(item.per_second[WARM], item.per_second[BARE])
    what = f"`{item.program}`, jobs/s, {item.at_once} at once, against bare runsc (runsc {item.release})"
    yield Goal(
        what, f"{bare:.1f}/s, bare runsc", f"{ours:.1f}/s ({ratio:.2f}x)", f"{least:g}x", ratio / least, LESS_BOOT
    )
    if item.outside_ms:
        what = (
            f"fleet's CPU a job, {item.at_once} at once: worker, Redis and producer, runsc aside (runsc {item.release})"
        )
        yield _new_outside(what, "", item.outside_ms)


def _prepared_start(item: PreparedStarts) -> Iterator[Goal]:
    way, most_ms = PREPARED if PREPARED in item.ms else WARM, PREPARED_GOALS[item.program]
    ours, warm, bare = (statistics.median(item.ms[name]) for name in (way, WARM, BARE))
    reason = SLOW_START.format(share=f"{item.prepared_share or 0:.0%}") if way == PREPARED else SLOW_KERNEL
    what = f"`{item.program}`, {way.rpartition(' ')[2]}, submit to outcome, idle, p50 (runsc {item.release})"
    found = f"{ours:.0f} ms ({median_ratio(item.ms[BARE], item.ms[way]):.1f}x)"
    yield Goal(what, f"{bare:.0f} ms, bare runsc", found, f"under {most_ms:.0f} ms", most_ms / ours, reason)
    if item.program == DATA.name:
        what = f"`{item.program}`, prepared, times faster than warm (runsc {item.release})"
        ratio = median_ratio(item.ms[WARM], item.ms[way])
        yield Goal(what, f"{warm:.0f} ms", f"{ratio:.1f}x", f"{LEAST_DATA_RATIO:g}x", ratio / LEAST_DATA_RATIO, reason)


def _history(figures: Figures) -> Iterator[Goal]:
    past = figures.history
    if past is None:
        return
    name, slowest = max(past.ms.items(), key=lambda item: item[1])
    what = f"the slowest question of the pages over {past.rows:,} ended runs ({name})"
    reason = f"{name} reads too many rows. Next: a count of hours, or an index"
    yield Goal(
        what, "none", f"{slowest:.0f} ms", f"under {MOST_QUESTION_MS:.0f} ms", MOST_QUESTION_MS / slowest, reason
    )


def _growth(figures: Figures) -> Iterator[Goal]:
    for kind, unit, reason in (
        ("queued", "jobs queued", LONGER_QUEUE),
        ("workers", "workers on one Redis", MORE_WORKERS),
    ):
        rows = [row for row in figures.growth if row.kind == kind]
        if len(rows) > 1:
            first, last = rows[0], rows[-1]
            factor = _cpu_us(last) / _cpu_us(first)
            what = f"fleet's CPU a job with {last.number:,} {unit} against {first.number:,}"
            baseline, found = f"{_cpu_us(first):,.0f} µs", f"{_cpu_us(last):,.0f} µs ({factor:.2f}x)"
            why = reason.format(
                redis_first=first.redis_cpu_us,
                redis_last=last.redis_cpu_us,
                calls_first=first.redis_calls,
                calls_last=last.redis_calls,
                rate_first=first.per_second,
                rate_last=last.per_second,
                cores=figures.machine.cores,
            )
            yield Goal(what, baseline, found, f"flat: at most {MAX_GROWTH}x", MAX_GROWTH / factor, why)


def _cpu_us(row: Growth) -> float:
    return row.worker_cpu_us + row.redis_cpu_us
