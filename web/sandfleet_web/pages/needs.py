"""Sentences for operators: each says what is wrong and what to do about it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandfleet_web.pages.loop_lag import WARN_SECONDS
from sandfleet_web.pages.text import clean, count, duration, link, plural, share, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandfleet.channel.fleet_state import FleetSummary
    from sandfleet.history.questions import HistoryStatus

    from sandfleet_web.pages.hosts import Host

MAX_NEEDS: Final = 20
REDIS_NEARLY_FULL: Final = 0.70
REDIS_REFUSES: Final = 0.80
HISTORY_LATE_SECONDS: Final = 30.0
LOST_SECONDS: Final = 24 * 3600.0
"""Lost runs of the history are an operator's matter for so long; then only a page's foot counts them."""


@dataclass(frozen=True)
class Need:
    """One thing that a person should do: the sentence, the fix, where to look, and the command."""

    text: str
    fix: str
    page: str = ""
    link_text: str = ""
    command: str = ""
    is_urgent: bool = False


def find_needs(
    summary: FleetSummary,
    hosts: Sequence[Host],
    history: HistoryStatus | None,
    *,
    loop_lag: float,
    age_target: Callable[[str], float],
) -> list[Need]:
    """Return what needs a person, the urgent first, `MAX_NEEDS` at most."""
    found = [
        *_of_workers(summary, hosts),
        *_of_queues(summary, age_target),
        *_of_hosts(hosts),
        *_of_redis(summary),
        *_of_history(history, summary.at),
    ]
    if loop_lag > WARN_SECONDS:
        found.append(
            Need(
                f"this server is slow: its loop is {duration(loop_lag)} late",
                "Flower's events keep it busy: run the pages alone",
                command="sandfleet-web serve",
            )
        )
    return sorted(found, key=lambda need: not need.is_urgent)[:MAX_NEEDS]


def _of_workers(summary: FleetSummary, hosts: Sequence[Host]) -> Iterator[Need]:
    if not any(worker.state not in {"late", "stopping"} for worker in summary.workers):
        yield Need(
            "no worker lives: no job starts",
            "start one on a host with runsc",
            "hosts",
            "Hosts",
            "sandfleet-worker start",
            is_urgent=True,
        )
    late = [worker for worker in summary.workers if worker.state == "late"]
    for worker in late[:5]:
        silence = duration(max(0.0, summary.at - worker.seen)) if worker.seen else "a while"
        yield Need(
            f"worker {clean(worker.owner, 80)} is late: no sign of life for {silence}",
            "its jobs start elsewhere; look at the host and its worker's log",
            link("host", name=worker.host),
            "Open host",
        )
    gone = [host for host in hosts if host.state == "absent"]
    if gone:
        names = ", ".join(clean(host.name, 40) for host in gone[:3])
        yield Need(
            f"{plural(len(gone), 'host')} marked, but no worker lives there: {names}",
            "uncordon hosts that are gone for good",
            "hosts",
            "Hosts",
        )


def _of_queues(summary: FleetSummary, age_target: Callable[[str], float]) -> Iterator[Need]:
    for queue in summary.queues:
        if not queue.total or queue.pause is not None:
            continue
        age = max(0.0, summary.at - queue.oldest) if queue.oldest else 0.0
        page, command = link("queue", name=queue.name), f"sandfleet queues show {shlex.quote(queue.name)}"
        name, target = clean(queue.name, 80), age_target(queue.name)
        if not queue.is_served:
            yield Need(
                f"queue {name} is not served: {plural(queue.total, 'job')}, oldest {duration(age)};"
                " no live worker takes them",
                "add it to SANDFLEET_QUEUES of a host",
                page,
                "Open queue",
                command,
                is_urgent=True,
            )
        elif age > target:
            yield Need(
                f"queue {name} is slow: its oldest job has waited {duration(age)}, the target is {duration(target)}",
                "add slots, or see which batch fills it",
                page,
                "Open queue",
                command,
                is_urgent=age > 6 * target,
            )


def _of_hosts(hosts: Sequence[Host]) -> Iterator[Need]:
    for host in hosts:
        seen = host.failures
        if seen is not None and seen.is_odd:
            yield Need(
                f"{clean(host.name, 80)}: {share(seen.failed, seen.tries)} of its attempts failed by our doing in the last"
                f" hour, on other hosts {share(seen.others_failed, seen.others_tries)}",
                "cordon it, then run sandfleet-worker doctor there",
                link("host", name=host.name),
                "Open host",
                f"sandfleet hosts cordon {shlex.quote(host.name)} --reason 'odd host'",
            )


def _of_redis(summary: FleetSummary) -> Iterator[Need]:
    if summary.dead_letters:
        yield Need(
            f"{plural(summary.dead_letters, 'dead letter')}: jobs that the fleet failed and tries no more",
            "see why, then requeue or purge them",
            link("failures", category="host"),
            "Failures",
            "sandfleet dead list",
        )
    used = summary.redis_used / summary.redis_max if summary.redis_max else 0.0
    if used > REDIS_NEARLY_FULL:
        is_refusing = used >= REDIS_REFUSES
        yield Need(
            f"Redis is {used:.0%} full ({size(summary.redis_used)} of {size(summary.redis_max)})"
            + (": submits are refused" if is_refusing else f": submits are refused at {REDIS_REFUSES:.0%}"),
            "give it more memory, or keep outcomes for less time (SANDFLEET_RESULT_TTL_SECONDS)",
            is_urgent=is_refusing,
        )


def _of_history(history: HistoryStatus | None, now: float) -> Iterator[Need]:
    if history is None:
        return
    if history.fault:
        yield Need(f"history: {clean(history.fault, 200)}", "look at the log of sandfleet-web")
    if history.lost and now - history.lost_at < LOST_SECONDS:
        yield Need(
            f"{count(history.lost)} ended runs are missing in the history: they left Redis before they were read,"
            f" the newest {duration(max(0.0, now - history.lost_at))} ago",
            "keep sandfleet-web running; counts of batches are not affected",
        )
    if history.lag_seconds > HISTORY_LATE_SECONDS:
        yield Need(
            f"the history is {duration(history.lag_seconds)} behind ({count(history.head - history.number)} ended runs)",
            "see that sandfleet-web runs, and that its disk has space",
            command="sandfleet-web history status",
        )
