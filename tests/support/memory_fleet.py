"""A `FleetState` and a `History` in memory, for the tests of pages."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sandfleet.channel.fleet_state import AuditEntry, Cordon, FleetSummary, HostImage, Pause, RunningJob
from sandfleet.history.questions import (
    FailureGroup,
    FailureKey,
    HistoryFilter,
    HistoryStatus,
    PastPage,
    PastRun,
    RollupKey,
    RollupPoint,
    RunTimes,
    UsageKey,
    UsageRow,
)
from sandfleet_config.codes import Category, read_code

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class MemoryFleetState:
    """Answers what a test puts in; counts its reads of the summary."""

    summary: FleetSummary
    running: dict[str, list[RunningJob]] = field(default_factory=dict)
    images: dict[str, list[HostImage]] = field(default_factory=dict)
    queued: dict[str, list[str]] = field(default_factory=dict)
    audit: list[AuditEntry] = field(default_factory=list)
    reads: int = 0
    fault: Callable[[], object] = lambda: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read_summary(self) -> FleetSummary:
        with self._lock:
            self.reads += 1
        self.fault()
        return self.summary

    def running_jobs(self, host: str) -> list[RunningJob]:
        return self.running.get(host, [])

    def host_images(self) -> Mapping[str, Sequence[HostImage]]:
        return self.images

    def queued_ids(self, queue: str, first: int, count: int) -> list[str]:
        return self.queued.get(queue, [])[first : first + count]

    def whole_queue(self, queue: str, count: int) -> list[str]:
        return self.queued_ids(queue, 0, count)

    def count_expiring(self, queue: str, before: float) -> int:  # noqa: ARG002  none has a TTL here
        return 0

    def cordon(self, cordon: Cordon) -> None:
        others = tuple(one for one in self.summary.cordons if one.host != cordon.host)
        self.summary = replace(self.summary, cordons=(*others, cordon))

    def uncordon(self, host: str) -> bool:
        others = tuple(one for one in self.summary.cordons if one.host != host)
        was = len(others) < len(self.summary.cordons)
        self.summary = replace(self.summary, cordons=others)
        return was

    def pause(self, pause: Pause) -> None:
        queues = tuple(replace(one, pause=pause) if one.name == pause.queue else one for one in self.summary.queues)
        self.summary = replace(self.summary, queues=queues)

    def resume(self, queue: str) -> bool:
        queues = tuple(replace(one, pause=None) if one.name == queue else one for one in self.summary.queues)
        was = queues != self.summary.queues
        self.summary = replace(self.summary, queues=queues)
        return was

    def add_audit(self, entry: AuditEntry) -> None:
        self.audit.insert(0, entry)

    def read_audit(self, count: int, before: str = "") -> list[AuditEntry]:
        first = next((place for place, one in enumerate(self.audit, 1) if one.entry_id == before), 0) if before else 0
        return self.audit[first : first + count]


def _new_times(code: str, runs: Sequence[PastRun]) -> RunTimes:
    """As `read_times` does, by its definition: the least value that so many do not exceed."""
    started = [run for run in runs if run.started]
    ran = [run.ended - run.started for run in started]
    waited = [run.started - run.submitted for run in started if run.submitted]

    def find(values: list[float], part: float) -> float | None:
        least = (one for one in sorted(values) if sum(other <= one for other in values) >= part * len(values))
        return next(least, None)

    return RunTimes(
        code=code, count=len(runs), run_median=find(ran, 0.5), run_p95=find(ran, 0.95),
        wait_median=find(waited, 0.5), wait_p95=find(waited, 0.95),
    )  # fmt: skip


@dataclass
class MemoryHistory:
    """Answers from a list of runs, by plain Python."""

    runs: list[PastRun] = field(default_factory=list)
    state: HistoryStatus = field(default_factory=lambda: HistoryStatus(at=0.0))
    groups: list[FailureGroup] = field(default_factory=list)
    fault: Callable[[], object] = lambda: None

    def status(self) -> HistoryStatus:
        return self.state

    def _find(self, wanted: HistoryFilter) -> list[PastRun]:
        self.fault()
        return [run for run in self.runs if takes(wanted, run)]

    def find_runs(self, wanted: HistoryFilter, *, count: int = 50, cursor: str = "") -> PastPage:
        found, first = self._find(wanted), int(cursor or 0)
        more = str(first + count) if len(found) > first + count else ""
        return PastPage(tuple(found[first : first + count]), more)

    def count_runs(self, wanted: HistoryFilter) -> int:
        return len(self._find(wanted))

    def find_times(self, wanted: HistoryFilter) -> Sequence[RunTimes]:
        found = self._find(wanted)
        codes = dict.fromkeys(["", *(run.code for run in found)])
        return [_new_times(code, [run for run in found if code in {"", run.code}]) for code in codes]

    def runs_of(self, job_id: str) -> Sequence[PastRun]:
        return [run for run in self.runs if run.job_id == job_id]

    def find_failures(
        self, wanted: HistoryFilter, *, by: FailureKey = "fingerprint", count: int = 100
    ) -> Sequence[FailureGroup]:
        self.fault()
        if self.groups and by == "fingerprint":
            return self.groups[:count]
        found: dict[str, list[PastRun]] = {}
        for run in self._find(wanted):
            if run.category != "ok":
                found.setdefault(str(getattr(run, by)), []).append(run)
        groups = [_group(runs) for runs in found.values()]
        return sorted(groups, key=lambda group: -group.count)[:count]

    def roll_up(self, by: RollupKey, *, since: float, until: float, step_seconds: int = 60) -> Sequence[RollupPoint]:
        if by in {"tries", "failed_tries"}:
            return _roll_up_tries(self._find(HistoryFilter(since=since, until=until)), since, is_failed=by != "tries")
        found: dict[tuple[float, str], list[PastRun]] = {}
        for run in self._find(HistoryFilter(since=since, until=until)):
            at = since + (run.ended - since) // step_seconds * step_seconds
            found.setdefault((at, str(getattr(run, by))), []).append(run)
        return [
            RollupPoint(at=at, key=key, count=len(runs), queued_seconds=sum(run.steps.get("queued", 0) for run in runs))
            for (at, key), runs in found.items()
        ]

    def find_usage(
        self,
        by: UsageKey,  # noqa: ARG002  no page asks for it
        wanted: HistoryFilter,  # noqa: ARG002
        *,
        label: str = "",  # noqa: ARG002
        count: int = 100,  # noqa: ARG002
    ) -> Sequence[UsageRow]:
        return []


def _roll_up_tries(runs: Sequence[PastRun], since: float, *, is_failed: bool) -> list[RollupPoint]:
    tries = [one for run in runs for one in run.attempts if one.charged]
    hosts = Counter(one.host for one in tries if not is_failed or read_code(one.code).category is Category.HOST)
    return [RollupPoint(at=since, key=host, count=count) for host, count in hosts.items()]


def takes(wanted: HistoryFilter, run: PastRun) -> bool:
    """Say whether a run matches."""
    text = wanted.text.lower()
    return (
        wanted.batch in {"", run.batch}
        and wanted.job_id in {"", run.job_id}
        and (not wanted.codes or run.code in wanted.codes)
        and (not wanted.categories or run.category in wanted.categories)
        and all(run.labels.get(key) == value for key, value in wanted.labels.items())
        and wanted.host in {"", run.host}
        and wanted.queue in {"", run.queue}
        and wanted.image in {"", run.image}
        and wanted.fingerprint in {"", run.fingerprint}
        and (wanted.exit_code is None or run.exit_code == wanted.exit_code)
        and (not text or text in run.line.lower() or text in run.message.lower())
        and (wanted.since is None or run.ended >= wanted.since)
        and (wanted.until is None or run.ended <= wanted.until)
    )


def _group(runs: list[PastRun]) -> FailureGroup:
    newest = max(runs, key=lambda run: run.ended)
    return FailureGroup(
        code=newest.code,
        category=newest.category,
        message=newest.message,
        fingerprint=newest.fingerprint,
        image=newest.image,
        count=len(runs),
        hosts=len({run.host for run in runs}),
        batches=len({run.batch for run in runs}),
        first=min(run.ended for run in runs),
        last=newest.ended,
        example=newest.job_id,
        top_host=newest.host,
        top_batch=newest.batch,
        trend=(len(runs),),
    )
