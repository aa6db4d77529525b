"""Parse what Redis has about the fleet's state. Anybody may write there: nothing here raises."""

from __future__ import annotations

import fnmatch
import json
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from sandfleet_config.queues import JOB_ID, host_of_owner, is_queue

from sandfleet.channel.fleet_state import (
    MAX_NOTE,
    AuditEntry,
    Cordon,
    HostImage,
    Pause,
    PreparedStarts,
    RunningJob,
    WorkerState,
    WorkerStatus,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MILLI: Final = 1000
MAX_NUMBER: Final = 1e15
MAX_TIME: Final = 1e11
"""Unix time of a far future: calendars end soon after."""
MAX_TEXT: Final = 512
MAX_ITEMS: Final = 64
MAX_JOBS: Final = 256
MAX_IMAGES: Final = 200
STATES: Final = frozenset(get_args(WorkerState))
MARKED: Final = frozenset(("cordoned", "draining", "drained"))


def read_text(value: object, longest: int = MAX_TEXT) -> str:
    """Return a text that can be encoded, cut; empty for what is none."""
    return value[:longest].encode(errors="replace").decode() if isinstance(value, str) else ""


def read_bytes(raw: bytes, longest: int = MAX_TEXT) -> str:
    """Return bytes of Redis as text, cut."""
    return raw[: 4 * longest].decode(errors="replace")[:longest]


def read_number(value: object) -> float:
    """Return a number from 0 on; 0.0 for what is none that could be meant."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_NUMBER:
        return 0.0
    return float(value)


def read_time(value: object) -> float:
    """Return a unix time; 0.0 for what is none."""
    found = read_number(value)
    return found if found < MAX_TIME else 0.0


def read_json(raw: bytes | str) -> Any:
    """Return the value of a JSON text, None if it is none."""
    try:
        return json.loads(raw) if raw else None
    except (ValueError, RecursionError):
        return None


def read_object(raw: bytes | str) -> dict[str, Any]:
    """Return a JSON object; empty if the text is none."""
    found = read_json(raw)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _read_texts(value: object) -> tuple[str, ...]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    return tuple(text for item in items[:MAX_ITEMS] if (text := read_text(item)))


def _read_mapping(value: object) -> dict[str, object]:
    items = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return {read_text(key): item for key, item in list(items.items())[:MAX_ITEMS]}


def parse_worker(owner: bytes, lease_end: bytes, raw_status: bytes, announced: bytes, now: float) -> WorkerStatus:
    """Return a worker; `announced` has its queues and labels where the status does not."""
    status, facts = read_object(raw_status), read_object(announced)
    name = read_bytes(owner)
    left = _read_score(lease_end) / MILLI - now
    state = read_text(status.get("state"))
    labels = _read_mapping(status.get("labels") or facts.get("labels"))
    return WorkerStatus(
        owner=name,
        host=host_of_owner(name),
        state="late" if left <= 0 else cast("WorkerState", state) if state in STATES else "up",
        queues=_read_texts(status.get("queues") or facts.get("queues")),
        slots=int(read_number(status.get("slots"))),
        busy=int(read_number(status.get("busy"))),
        running=int(read_number(status.get("running"))),
        waiting=int(read_number(status.get("waiting"))),
        warm={name: int(read_number(count)) for name, count in _read_mapping(status.get("warm")).items()},
        prepared=_parse_prepared(status.get("prepared")),
        lease_seconds=max(0.0, left),
        load=read_number(status.get("load")),
        memory_free=int(read_number(status.get("memory_free"))),
        memory_budget=int(read_number(status.get("memory_budget") or facts.get("budget"))),
        disk_free=int(read_number(status.get("disk_free"))),
        version=read_text(status.get("version")),
        runsc=read_text(status.get("runsc")),
        platform=read_text(status.get("platform")),
        started=read_time(status.get("started")),
        seen=read_time(read_number(status.get("at")) / MILLI),
        unenforced=_read_texts(status.get("unenforced")),
        labels={key: read_text(value) for key, value in labels.items()},
    )


def _parse_prepared(value: object) -> PreparedStarts:
    told = _read_mapping(value)
    misses = {reason: int(read_number(count)) for reason, count in _read_mapping(told.get("misses")).items()}
    return PreparedStarts(int(read_number(told.get("starts"))), misses, _read_texts(told.get("quarantined")))


def _read_score(raw: bytes) -> float:
    """Return a score; what is no number, or infinite, is 0."""
    try:
        found = float(raw)
    except ValueError:
        return 0.0
    return read_number(found)


def find_state(worker: WorkerStatus, cordon: Cordon | None) -> WorkerState:
    """Return the state by the mark of its host, which counts from when it is set.

    A worker that reports nothing is of a release that does not obey marks.
    """
    if worker.state in {"late", "stopping"} or not worker.seen:
        return worker.state
    if cordon is None:
        return "up"
    if worker.state in MARKED and (worker.state == "cordoned") == (cordon.deadline is None):
        return worker.state
    return "cordoned" if cordon.deadline is None else "draining"


def serves(worker: WorkerStatus, queue: str) -> bool:
    """Whether the worker takes jobs from `queue`; one that does not say may."""
    return not worker.queues or any(fnmatch.fnmatchcase(queue, pattern) for pattern in worker.queues)


def parse_cordons(found: Sequence[bytes]) -> tuple[Cordon, ...]:
    """Return the marks of hosts, by their names. One that cannot be read counts, too."""
    marks = [(read_bytes(host), read_object(text)) for host, text in zip(found[::2], found[1::2], strict=True)]
    return tuple(
        Cordon(
            host,
            read_text(mark.get("by")),
            read_time(mark.get("at")),
            read_text(mark.get("reason"), MAX_NOTE),
            read_time(mark["deadline"]) if isinstance(mark.get("deadline"), (int, float)) else None,
        )
        for host, mark in sorted(marks, key=lambda pair: pair[0])
    )


def parse_pauses(found: Sequence[bytes]) -> dict[str, Pause]:
    """Return the marks of queues by their names. One that cannot be read counts, too."""
    marks = [(read_bytes(queue), read_object(text)) for queue, text in zip(found[::2], found[1::2], strict=True)]
    return {
        queue: Pause(queue, read_text(mark.get("by")), read_time(mark.get("at")), read_text(mark.get("note"), MAX_NOTE))
        for queue, mark in marks
        if is_queue(queue)
    }


def parse_running(owner: str, raw: bytes) -> list[RunningJob]:
    """Return the jobs that a worker says it has."""
    found = read_json(raw)
    jobs: list[RunningJob] = []
    for item in cast("list[object]", found)[:MAX_JOBS] if isinstance(found, list) else ():
        match item:
            case [str(job_id), int(slot), int() | float() as started] if JOB_ID.match(job_id):
                jobs.append(RunningJob(job_id, owner, max(-1, min(slot, 1 << 20)), read_time(started)))
            case _:
                pass
    return jobs


def parse_images(raw: bytes) -> list[HostImage]:
    """Return the images that a host says it has."""
    found = read_json(raw)
    images: list[HostImage] = []
    for item in cast("list[object]", found)[:MAX_IMAGES] if isinstance(found, list) else ():
        match item:
            case [str(name), str(digest), int() | float() as size, int() | float() as used]:
                images.append(
                    HostImage(read_text(name), read_text(digest, 128), int(read_number(size)), read_time(used))
                )
            case _:
                pass
    return images


def parse_audit(entry: Sequence[Any]) -> AuditEntry:
    """Return an entry of the audit."""
    entry_id, raw = entry
    fields: Mapping[bytes, bytes] = dict(zip(raw[::2], raw[1::2], strict=False))

    def text(name: bytes) -> str:
        return read_bytes(fields.get(name, b""), MAX_NOTE)

    count = fields.get(b"count", b"")
    return AuditEntry(
        entry_id=read_bytes(entry_id),
        at=read_time(int(entry_id.partition(b"-")[0]) / MILLI),
        by=text(b"by"),
        role=text(b"role"),
        via=text(b"via"),
        action=text(b"action"),
        target=text(b"target"),
        count=int(count) if count.isdigit() and len(count) < 16 else 0,  # noqa: PLR2004
        reason=text(b"reason"),
        result=text(b"result"),
    )
