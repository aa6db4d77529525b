"""Make the summary of a run that ends: the fields of `EndedRun`, packed as JSON.

Long texts are cut, and labels that do not fit are left out.

`finish.lua` gets a summary without the fields that its other arguments have (`cut_summary`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from sandfleet_config.ended_run import (
    MAX_NAME_BYTES,
    MAX_NUMBER,
    MAX_SUMMARY_BYTES,
    MAX_TRIES,
    STEPS,
    count_packed,
    cut_name,
    cut_text,
    pack,
)
from sandfleet_config.failure_kind import fingerprint_failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sandfleet_config.outcome import Attempt, Outcome

MAX_LABEL_BYTES: Final = 512
MAX_TEXT_CHARS: Final = 200
"""Longest command line and message."""
MAX_START_BYTES: Final = 16
SPEC_DIGITS: Final = 16
"""Digits of a spec's fingerprint that are kept."""
MAX_SLOT: Final = 65_535
"""A slot above it is forged."""
MAX_SECONDS: Final = 1e11
MAX_TIME_DIGITS: Final = 14
"""Digits of a time in ms, below `MAX_SECONDS`; Python refuses to read many thousands of digits."""
_MILLI: Final = 1000
_RESULT_TAIL: Final = 512
_IN_RESULT: Final = re.compile(
    r'"image_digest":"(sha256:[0-9a-f]+)","artifacts":\[\],"artifacts_lost":null,"spec_sha256":"([0-9a-f]+)"'
)
"""Digest and spec near the end of a result, where `ended_runs.lua` looks for them, too."""


class RunFacts(NamedTuple):
    """The facts of a run that are not in its outcome. `submitted` is unix time, 0.0 if unknown."""

    queue: str = ""
    image: str = ""
    line: str = ""
    submitted: float = 0.0
    memory_bytes: int = 0


NO_FACTS: Final = RunFacts()


def read_facts(record: bytes | None, needs: bytes | None, queue: bytes | None, submitted: bytes | None) -> RunFacts:
    """Return the facts of a job that no worker has, from fields of its record in Redis.

    Unreadable ones count as not known.
    """
    told, needed = _parse_object(record), _parse_object(needs)
    at, memory = told.get("submitted"), needed.get("memory_bytes")
    if submitted and submitted.isdigit() and len(submitted) <= MAX_TIME_DIGITS:  # of a later run
        at = int(submitted) / _MILLI
    return RunFacts(
        queue=(queue or b"").decode(errors="replace"),
        image=str(needed.get("image") or ""),
        line=str(told.get("line") or ""),
        submitted=float(at) if isinstance(at, int | float) and 0 <= at < MAX_SECONDS else 0.0,
        memory_bytes=int(memory) if isinstance(memory, int | float) and 0 <= memory < MAX_NUMBER else 0,
    )


def _parse_object(raw: bytes | None) -> dict[str, Any]:
    try:
        found: object = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def encode_summary(outcome: Outcome, facts: RunFacts) -> str:
    """Return the summary of a run that ended with `outcome`, as JSON."""
    code, last = outcome.code, outcome.attempts[-1] if outcome.attempts else None
    memory = outcome.limits.get("memory_bytes")
    tries = _choose_tries(outcome.attempts)
    slots = [None if slot is None or not 0 <= slot <= MAX_SLOT else slot for slot in (one.slot for one in tries)]
    fields: dict[str, Any] = {
        "id": outcome.job_id,
        "code": code.value,
        "digest": cut_text(outcome.image_digest or "", MAX_NAME_BYTES),
        "spec": outcome.spec_sha256[:SPEC_DIGITS],
        "run": None if outcome.run == 1 else outcome.run,
        "category": "" if code.is_known else code.category.value,
        "batch": cut_name(outcome.batch or ""),
        "queue": cut_name(facts.queue),
        "host": cut_name(last.host if last is not None else outcome.host),
        "image": cut_name(facts.image or outcome.image_ref or ""),
        "labels": _keep_labels(outcome.labels, MAX_LABEL_BYTES),
        "line": facts.line[:MAX_TEXT_CHARS],
        "message": outcome.message[:MAX_TEXT_CHARS],
        "kind": fingerprint_failure(code.value, outcome.message),
        "exit": outcome.exit_code,
        "signal": outcome.signal,
        "start": cut_text(outcome.start or "", MAX_START_BYTES),
        "submitted": round(facts.submitted * _MILLI) or None,
        "started": None if last is None else _count_milliseconds(last.started),
        "steps": _list_steps(outcome),
        "cpu": _round(outcome.usage.cpu_seconds),
        "peak": outcome.usage.memory_peak_bytes,
        "memory": int(memory.value) if memory is not None else facts.memory_bytes or None,
        "attempts": len(outcome.attempts) or None,
        "tries": [_list_try(attempt) for attempt in tries],
        "slots": slots if any(slot is not None for slot in slots) else [],
    }
    return _pack_bounded({name: value for name, value in fields.items() if value not in ("", None, [], {})})


def cut_summary(text: str, outcome: Outcome, result: str) -> str:
    """Return the summary `text` without the beginning that `ended_runs.lua` makes again.

    It makes the id, the code, the digest and the spec of the job's id, code and `result`. They are
    a third of a summary. One that begins otherwise is returned whole.
    """
    tail = result[-_RESULT_TAIL:]
    found = _IN_RESULT.search(tail) if tail.isascii() else None
    if found is None:
        return text
    spec = found[2][:SPEC_DIGITS]
    begin = f'{{"id":"{outcome.job_id}","code":"{outcome.code.value}","digest":"{found[1]}","spec":"{spec}",'
    return text.removeprefix(begin)


def _keep_labels(labels: Mapping[str, str], max_bytes: int) -> dict[str, str]:
    """Return the first labels that fit."""
    kept: dict[str, str] = {}
    for key, value in labels.items():
        size = count_packed(key) + count_packed(value) + len('"":"",')
        if size <= max_bytes:
            max_bytes -= size
            kept[key] = value
    return kept


def _pack_bounded(fields: dict[str, Any]) -> str:
    """Pack the fields; where they take too many bytes, cut what can best be done without."""
    text = pack(fields)
    for name, max_bytes in (
        *(("message", 160), ("line", 160), ("labels", 256), ("tries", 2), ("message", 80), ("line", 80)),
        *(("tries", 1), ("labels", 120), ("labels", 0), ("tries", 0), ("line", 0), ("message", 40), ("digest", 0)),
        *(("image", 60), ("message", 0), ("spec", 0), ("image", 0), ("steps", 0)),
    ):
        if len(text) * 4 <= MAX_SUMMARY_BYTES or len(text.encode("utf-8", "replace")) <= MAX_SUMMARY_BYTES:
            break
        for part in ("tries", "slots") if name == "tries" else (name,):
            if part in fields:
                fields[part] = _shorten(fields[part], max_bytes)
        text = pack(fields)
    # Half a UTF-16 pair, from a file name that is not UTF-8, cannot be sent.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _shorten(value: object, most: int) -> object:
    match value:
        case str():
            return cut_text(value, most)
        case dict():
            return _keep_labels(cast("dict[str, str]", value), most)
        case list():
            return cast("list[object]", value)[-most:] if most else []
        case _:
            return value


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _list_steps(outcome: Outcome) -> list[float | None]:
    timing = outcome.timing
    steps = [_round(getattr(timing, name)) for name in STEPS]
    return steps if any(step is not None for step in steps) else []


def _choose_tries(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    return attempts if len(attempts) <= MAX_TRIES else (attempts[0], *attempts[1 - MAX_TRIES :])


def _list_try(attempt: Attempt) -> list[object]:
    ended = 0 if attempt.ended is None else _count_milliseconds(attempt.ended)
    worker = attempt.worker.removeprefix(f"{attempt.host}.")
    code = "" if attempt.code is None else attempt.code.value
    started = _count_milliseconds(attempt.started)
    return [cut_name(attempt.host), cut_name(worker), code, started, ended, int(attempt.charged)]


def _count_milliseconds(moment: datetime) -> int:
    """Return a unix time in ms; 0 for one of a forged record that Python cannot count, or before 1970."""
    try:
        return max(0, round(moment.timestamp() * _MILLI))
    except (ValueError, OverflowError):  # a year at the edge, without a zone
        return 0
