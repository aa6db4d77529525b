"""The answers of the history in the JSON API: plain functions, for whatever serves them."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from sandfleet.history.fields import failure_fields, point_fields, run_fields, status_fields, times_fields, usage_fields
from sandfleet.history.questions import FailureKey, RollupKey, UsageKey
from sandfleet.history.words import WordsInvalid, parse_time, parse_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandfleet.history.questions import History, HistoryFilter

MAX_STEP_SECONDS: Final = 366 * 86400
_FAILURE_KEYS: Final[Mapping[str, FailureKey]] = {name: name for name in get_args(FailureKey)}
_ROLLUP_KEYS: Final[Mapping[str, RollupKey]] = {name: name for name in get_args(RollupKey)}
_USAGE_KEYS: Final[Mapping[str, UsageKey]] = {name: name for name in get_args(UsageKey)}
_T = TypeVar("_T")


def answer(history: History, name: str, query: Mapping[str, str]) -> dict[str, Any]:
    """Answer the question `name` of the API; `query` are its parameters, the first value of each.

    ``history``; ``jobs`` and ``count`` with `q` (words of a filter), `count` and `cursor`; ``job``
    with `id`; ``failures`` with `q`, `by` and `count`; ``rollup`` with `by`, `since`, `until` and
    `step` (s); ``usage`` with `q`, `by`, `label` and `count`; ``times`` with `q`.

    Raises:
        KeyError: there is no such question.
        ValueError: a parameter is wrong; the message says which.
        FleetError: `HistoryUnavailable` or `QueryTooSlow`.
    """
    return _ANSWERS[name](history, query)


def _status(history: History, _: Mapping[str, str]) -> dict[str, Any]:
    return status_fields(history.status())


def _jobs(history: History, query: Mapping[str, str]) -> dict[str, Any]:
    page = history.find_runs(_filter(query), count=_number(query, "count", 50), cursor=query.get("cursor", ""))
    return {"jobs": [run_fields(run) for run in page.rows], "cursor": page.cursor}


def _count(history: History, query: Mapping[str, str]) -> dict[str, Any]:
    return {"count": history.count_runs(_filter(query))}


def _job(history: History, query: Mapping[str, str]) -> dict[str, Any]:
    if not query.get("id"):
        raise WordsInvalid("id: give the id of a job")
    return {"runs": [run_fields(run) for run in history.runs_of(query["id"])]}


def _failures(history: History, query: Mapping[str, str]) -> dict[str, Any]:
    by = _choice(query, "by", _FAILURE_KEYS)
    found = history.find_failures(_filter(query), by=by, count=_number(query, "count", 100))
    return {"failures": [failure_fields(group) for group in found]}


def _rollup(history: History, query: Mapping[str, str]) -> dict[str, Any]:
    now = time.time()
    until = _time(query, "until", now, now)
    points = history.roll_up(
        _choice(query, "by", _ROLLUP_KEYS),
        since=_time(query, "since", until - 3600, now),
        until=until,
        step_seconds=min(_number(query, "step", 60), MAX_STEP_SECONDS),
    )
    return {"points": [point_fields(point) for point in points]}


def _usage(history: History, query: Mapping[str, str]) -> dict[str, Any]:
    by, label = _choice(query, "by", _USAGE_KEYS), query.get("label", "")
    if by == "label" and not label:
        raise WordsInvalid("label: give the key of the label")
    found = history.find_usage(by, _filter(query), label=label, count=_number(query, "count", 100))
    return {"usage": [usage_fields(row) for row in found]}


def _times(history: History, query: Mapping[str, str]) -> dict[str, Any]:
    return {"times": [times_fields(row) for row in history.find_times(_filter(query))]}


_ANSWERS: Final[dict[str, Callable[[History, Mapping[str, str]], dict[str, Any]]]] = {
    "history": _status,
    "jobs": _jobs,
    "count": _count,
    "job": _job,
    "failures": _failures,
    "rollup": _rollup,
    "usage": _usage,
    "times": _times,
}
QUESTIONS: Final = tuple(_ANSWERS)
"""The names that `answer` knows: the last part of their addresses."""


def _filter(query: Mapping[str, str]) -> HistoryFilter:
    return parse_words(query.get("q", "")).wanted


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    raw = query.get(name, "")
    if raw and not (raw.isdecimal() and len(raw) < len("1000000000")):
        raise WordsInvalid(f"{name}: must be a number")
    return int(raw) if raw else default


def _choice(query: Mapping[str, str], name: str, known: Mapping[str, _T]) -> _T:
    """Return the choice of a parameter, by default the first one."""
    found = known.get(query.get(name, next(iter(known))))
    if found is None:
        raise WordsInvalid(f"{name}: must be one of {', '.join(known)}")
    return found


def _time(query: Mapping[str, str], name: str, default: float, now: float) -> float:
    raw = query.get(name, "")
    try:
        found = float(raw) if raw else default
    except ValueError:
        return parse_time(raw, now)
    if not math.isfinite(found) or not 0 <= found < 1e11:  # noqa: PLR2004  the year 5138
        raise WordsInvalid(f"{name}: must be a time")
    return found
