"""One job: all its attempts on one clock, why it waits, and what it used. Never its output."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

from sandfleet.errors import FleetError
from sandfleet.overview.job_view import JobView
from sandfleet_config.advice import find_advice
from sandfleet_config.codes import read_code
from sandfleet_config.queues import JOB_ID
from sandfleet_config.units import format_limit
from tornado import web

from sandfleet_web.pages.categories import find_category
from sandfleet_web.pages.charts import Span
from sandfleet_web.pages.handler import Page, PageHandler
from sandfleet_web.pages.text import clean, count, duration, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet.channel.fleet_state import FleetSummary
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.overview import Queued
    from sandfleet.history.questions import PastRun

    from sandfleet_web.pages.site import Site

MAX_ATTEMPTS: Final = 20
STEPS: Final = ("queued", "image", "create", "run", "collect", "cleanup")
NOT_LIMITS: Final = frozenset(("contract", "requires", "datasets"))


@dataclass(frozen=True)
class AttemptRow:
    """A start of the job's program; times are unix times, 0.0 where they are not known."""

    number: int
    host: str
    worker: str
    slot: int | None
    code: str
    started: float
    ended: float
    charged: bool

    @property
    def category(self) -> str:
        """Whose doing its end was; empty if it goes on."""
        return find_category(self.code) if self.code else ""


@dataclass(frozen=True)
class JobRead:
    """A job as Redis and the history know it. `fault` says why the history says nothing."""

    facts: JobFacts | None
    runs: Sequence[PastRun]
    queued: Queued | None = None
    blocked: str = ""
    why: str = ""
    fault: str = ""


def read_job(site: Site, job_id: str) -> JobRead:
    """Read a job; its outcome, which has its output, is not read."""
    channel, runs, fault = site.sources.channel, (), ""
    (facts,) = channel.overview.facts([job_id])
    found: Sequence[PastRun] = runs
    if site.sources.history is None:
        fault = "there is no history here"
    else:
        try:
            found = site.sources.history.runs_of(job_id)
        except FleetError as error:
            fault = str(error)
    if facts is None or facts.state != "queued":
        return JobRead(facts, found, fault=fault)
    (record,) = channel.records([job_id])  # it knows the limits of the job's batch
    why = facts.why if record is None else record.why
    return JobRead(facts, found, channel.overview.find_queued(facts), channel.explain_no_claims(), why, fault)


class JobPage(PageHandler):
    """One job."""

    async def get(self) -> None:
        """Show it."""
        await self.answer(self._new_page(self.argument("id")))

    async def _new_page(self, job_id: str) -> Page:
        if not JOB_ID.match(job_id):
            raise web.HTTPError(404, reason="No job has such an id")
        site = self.site
        found = await site.reads.read(("job", job_id), lambda: read_job(site, job_id))
        if found.facts is None and not found.runs:
            raise web.HTTPError(404, reason="There is no job of that id, or it ended too long ago")
        summary = await site.read_summary()
        values = new_values(job_id, found, summary, site.clock())
        is_ended = values["state"] == "ended"
        return Page("job.html", f"Job {job_id}", "Jobs", values, refresh=0 if is_ended else 2, as_of=summary.at)


def new_values(job_id: str, found: JobRead, summary: FleetSummary, now: float) -> dict[str, Any]:
    """Put together what the page shows of a job."""
    facts, newest = found.facts, found.runs[0] if found.runs else None
    run = (
        newest
        if newest is not None and (facts is None or (facts.state == "ended" and newest.run == facts.run))
        else None
    )
    attempts = attempts_of_facts(facts) if facts is not None and facts.attempts else attempts_of_run(run)
    state = facts.state if facts is not None else "ended"
    code = _find_code(facts, run) if state == "ended" else ""
    submitted = facts.submitted if facts is not None else run.submitted if run is not None else 0.0
    ended = (run.ended if run is not None else facts.ended if facts is not None else 0.0) if state == "ended" else 0.0
    return {
        "job_id": job_id,
        "state": state,
        "code": code,
        "category": find_category(code) if code else "",
        "advice": find_code_advice(code),
        "run": run,
        "facts": facts,
        "number": facts.run if facts is not None else run.run if run is not None else 1,
        "earlier": [one for one in found.runs if one is not run],
        "attempts": attempts[:MAX_ATTEMPTS],
        "max_attempts": facts.max_attempts if facts is not None else 0,
        "submitted": submitted,
        "ended": ended,
        "spans": new_spans(submitted, attempts[:MAX_ATTEMPTS], state, ended),
        "why": list(explain(found, summary, now)),
        "limits": new_limits(facts),
        "steps": [(name, run.steps[name]) for name in STEPS if name in run.steps] if run is not None else [],
        "fault": found.fault,
        **_describe(facts, run),
    }


def _find_code(facts: JobFacts | None, run: PastRun | None) -> str:
    if run is not None:
        return run.code
    return facts.code.value if facts is not None and facts.code else ""


def _describe(facts: JobFacts | None, run: PastRun | None) -> dict[str, Any]:
    """Return what was submitted, from the record or, once that has expired, the history."""
    source: Any = facts if facts is not None else run
    return {
        "line": source.line,
        "batch": source.batch or "",
        "queue": source.queue,
        "labels": dict(source.labels),
        "image": source.image,
        "digest": run.image_digest if run is not None else "",
    }


def find_code_advice(code: str) -> str:
    """Return the next thing to do about an end; empty for none."""
    try:
        return find_advice(read_code(code)) if code else ""
    except ValueError:
        return ""


def attempts_of_facts(facts: JobFacts) -> list[AttemptRow]:
    """Return the attempts that the job's record tells."""
    return [
        AttemptRow(
            number,
            one.host,
            one.worker,
            one.slot,
            one.code.value if one.code else "",
            _to_unix(one.started),
            _to_unix(one.ended),
            one.charged,
        )
        for number, one in enumerate(facts.attempts, 1)
    ]


def attempts_of_run(run: PastRun | None) -> list[AttemptRow]:
    """Return the attempts that the history tells."""
    return [
        AttemptRow(number, one.host, one.worker, one.slot, one.code, one.started, one.ended, one.charged)
        for number, one in enumerate(run.attempts if run is not None else (), 1)
    ]


def _to_unix(moment: datetime | None) -> float:
    return moment.timestamp() if moment is not None else 0.0


def new_spans(submitted: float, attempts: Sequence[AttemptRow], state: str, ended: float) -> list[Span]:
    """Return the stretches of a job's time: waits and attempts in turn."""
    spans: list[Span] = []
    at = submitted
    for row in attempts:
        if at and row.started > at:
            spans.append(Span("waited", "wait", at, row.started))
        end = row.ended or (ended if state == "ended" and row is attempts[-1] else 0.0)
        place = row.host if row.slot is None else f"{row.host}, slot {row.slot}"
        spans.append(Span(f"attempt {row.number} on {place}", row.category or "busy", row.started, end or None))
        at = end
    if state == "queued" and at:
        spans.append(Span("waits", "wait", at, None))
    if state == "ended" and not attempts and ended:
        spans.append(Span("waited", "wait", submitted, ended))
    return spans


def new_limits(facts: JobFacts | None) -> list[tuple[str, str]]:
    """Return the limits and the host's labels that a job asks for, as people read them."""
    if facts is None:
        return []
    found: list[tuple[str, str]] = []
    for name, value in facts.needs.items():
        if name not in NOT_LIMITS:
            try:
                found.append((name.removesuffix("_bytes"), format_limit(name, value)))
            except (TypeError, ValueError, KeyError):
                found.append((name, clean(str(value), 100)))
    requires = facts.needs.get("requires")
    if isinstance(requires, dict):
        found += [
            (f"needs a host with {key}", str(value)) for key, value in cast("dict[str, object]", requires).items()
        ]
    return found


def explain(found: JobRead, summary: FleetSummary, now: float) -> Iterator[str]:
    """Say why a job waits that has not started, one reason a sentence."""
    facts = found.facts
    if facts is None or facts.state in {"ended", "running"}:
        return
    if facts.state == "waiting":
        yield JobView(facts).explain_wait()
        return
    queue = next((one for one in summary.queues if one.name == facts.queue), None)
    if queue is not None and queue.pause is not None:
        note = f": {clean(queue.pause.note, 200)}" if queue.pause.note else ""
        yield f"its queue {facts.queue} is paused by {clean(queue.pause.by, 64)}{note}"
    if found.blocked:
        yield found.blocked
    if found.why:
        yield clean(found.why, 300)
    yield from _explain_place(found, facts, summary)
    if facts.expires:
        yield f"it expires in {duration(facts.expires - now)}"


def _explain_place(found: JobRead, facts: JobFacts, summary: FleetSummary) -> Iterator[str]:
    serving = [worker for worker in summary.workers if facts.queue in worker.queues]
    alive = [worker for worker in serving if worker.state == "up"]
    marked = {worker.host for worker in serving} - {worker.host for worker in alive}
    place = found.queued
    if not alive and (place is None or not place.is_served or serving):
        is_none = not any(worker.state == "up" for worker in summary.workers)
        yield (
            "no worker takes jobs now: start one (sandfleet-worker start)"
            if is_none and not marked
            else f"no live worker takes jobs of the queue {facts.queue}: see SANDFLEET_QUEUES of the hosts"
            if not marked
            else "all hosts that take its queue are cordoned or drained"
        )
    elif marked:
        yield f"{plural(len(marked), 'host that takes', 'hosts that take')} its queue: no starts (cordoned, drained or ending)"
    if place is not None:
        yield (
            "it is next in its queue"
            if place.before == 0
            else f"about {plural(place.before, 'job comes', 'jobs come')} before it"
            if place.before is not None
            else f"more than {count(place.passed)} jobs come before it, or it waits for its next attempt"
        )
    slots = {worker.host: (worker.busy, worker.slots) for worker in alive}
    if slots and all(busy >= number for busy, number in slots.values()):
        yield f"all {sum(number for _, number in slots.values())} slots of the hosts that take it are busy"
