"""``sandfleet show``: one job, ended or not."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING

from sandfleet_config.codes import Category
from sandfleet_config.units import format_count

from sandfleet.cli.rows import format_duration
from sandfleet.cli.show import (
    attempt_lines,
    describe_limits,
    describe_place,
    file_lines,
    outcome_lines,
    print_lines,
    print_stream,
    run_line,
)
from sandfleet.overview.fields import format_iso, job_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.fleet import Fleet
    from sandfleet.overview.job_view import JobView


def show_job(fleet: Fleet, job_id: str, run: int | None, *, is_json: bool) -> None:
    """Print what the fleet knows about a job; its outputs if it has ended."""
    job = fleet.job(job_id)
    if run is not None:
        _print_outcome(fleet, job.outcome(0, run=run), None, is_json=is_json)
        return
    _ = job.is_done  # it ends a job whose queue_ttl is over
    view = fleet.view(job_id)
    if view.outcome is not None:
        _print_outcome(fleet, view.outcome, view, is_json=is_json)
    elif is_json:
        print(json.dumps(_view_fields(view), indent=2))
    else:
        record = fleet.record(job_id)
        print_lines([*_view_lines(view), *file_lines(record)])
        if record is not None and record.live:
            print_lines([("output", f"sandfleet logs -f {job_id}")])


def _print_outcome(fleet: Fleet, outcome: Outcome, view: JobView | None, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(outcome.to_json(), indent=2))
        return
    print_lines([*outcome_lines(outcome), *file_lines(fleet.record(outcome.job_id), outcome)])
    if view is not None:
        print_lines(_ended_lines(view))
    print_stream("stdout", outcome.stdout)
    print_stream("stderr", outcome.stderr)


def _ended_lines(view: JobView) -> Iterator[tuple[str, str]]:
    """Yield what the record of an ended job adds to its outcome, and what to do next."""
    facts, outcome = view.facts, view.outcome
    if facts.line:
        yield "ran", facts.line
    if facts.image and (outcome is None or not outcome.image_ref):
        yield "image", facts.image
    if outcome is None or not outcome.limits:  # it never ran
        yield from _limit_lines(facts)
    yield from _host_lines(facts)
    if facts.queue:
        yield "queue", facts.queue
    yield from _time_lines(facts)
    if outcome is None or outcome.code.category is Category.OK:
        return
    yield "next", view.advice
    if facts.batch is not None:
        words = ["sandfleet", "batch", "retry", facts.batch, "--code", outcome.code.value]
        yield "", f"then: {shlex.join(words)}"
    yield "", f"more: docs/how-to/what-now.md, {outcome.code.value}"


def _view_lines(view: JobView) -> Iterator[tuple[str, str]]:
    """Yield the facts of a job that has not ended."""
    facts = view.facts
    yield "job", facts.job_id
    yield from run_line(facts.run)
    yield "state", facts.state
    if facts.state != "queued" and facts.host:
        yield "host", describe_place(facts.attempts[-1]) if facts.state == "running" and facts.attempts else facts.host
    if (seconds := facts.count_seconds()) is not None and facts.state == "running":
        yield "running for", format_duration(seconds)
    if why := view.explain_wait():
        since = format_iso(facts.why_at) if facts.why and not view.blocked else None
        yield "waits", f"{why} ({since})" if since else why
    if view.queued is not None:
        yield "place", _describe_place(view)
    yield "queue", f"{facts.queue}, priority step {facts.step}"
    if facts.expires and facts.state == "queued":
        yield "expires in", format_duration(max(0.0, facts.expires - time.time()))
    yield from _spec_lines(facts)
    if facts.batch is not None:
        yield "batch", facts.batch
    yield from _time_lines(facts)
    yield from attempt_lines(facts.attempts)


def _describe_place(view: JobView) -> str:
    place = view.queued
    if place is None:
        return ""
    if place.before is None:
        return (
            f"more than {format_count(place.passed, 'job')} of its queue come first, or it was put aside for a moment"
        )
    if not place.before:
        return "it is next in its queue"
    return f"about {format_count(place.before, 'job of its queue comes', 'jobs of its queue come')} first"


def _spec_lines(facts: JobFacts) -> Iterator[tuple[str, str]]:
    if facts.line:
        yield "runs", facts.line
    if facts.image:
        yield "image", facts.image
    yield from _limit_lines(facts)
    yield from _host_lines(facts)
    if facts.labels:
        yield "labels", ", ".join(f"{key}={value}" for key, value in facts.labels.items())


def _limit_lines(facts: JobFacts) -> Iterator[tuple[str, str]]:
    """Yield the limits that the job asks for."""
    if limits := _list_limits(facts):
        yield "limits", describe_limits(limits)


def _list_limits(facts: JobFacts) -> dict[str, float]:
    return {name: value for name, value in facts.needs.items() if name != "contract" and isinstance(value, int | float)}


def _host_lines(facts: JobFacts) -> Iterator[tuple[str, str]]:
    """Yield what the job asks of its host besides limits."""
    if requires := facts.needs.get("requires"):
        yield "requires", ", ".join(f"{key}={value}" for key, value in requires.items())
    if datasets := facts.needs.get("datasets"):
        yield "datasets", ", ".join(datasets)


def _time_lines(facts: JobFacts) -> Iterator[tuple[str, str]]:
    if at := format_iso(facts.submitted):
        yield "submitted", at


def _view_fields(view: JobView) -> dict[str, object]:
    place = view.queued
    more: dict[str, object] = {
        "why": view.explain_wait() or None,
        "before": place.before if place is not None else None,
        "limits": _list_limits(view.facts),
        "requires": view.facts.needs.get("requires", {}),
        "expires": format_iso(view.facts.expires) if view.facts.state == "queued" else None,
        "attempts": [
            {"host": one.host, "worker": one.worker, "code": one.code.value if one.code else None,
             "slot": one.slot, "started": one.started.isoformat(), "charged": one.charged}
            for one in view.facts.attempts
        ],
    }  # fmt: skip
    return job_fields(view.facts) | more
