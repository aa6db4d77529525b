"""The `FleetState` on Redis."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.audit import MAX_ENTRIES, list_audit_args
from sandfleet_config.queues import KEY_PREFIX, host_images_key, host_of_owner, is_queue, running_key
from sandfleet_config.scripts import PRIORITY_STEPS, read_script

from sandfleet.channel.fleet_state import MAX_COUNTED, MAX_MARKS, MAX_NOTE, FleetSummary, QueueState
from sandfleet.channel.state_values import (
    MILLI,
    find_state,
    parse_audit,
    parse_cordons,
    parse_images,
    parse_pauses,
    parse_running,
    parse_worker,
    serves,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.fleet_state import AuditEntry, Cordon, HostImage, Pause, RunningJob, WorkerStatus

MAX_WORKERS: Final = 1000
MAX_QUEUES: Final = 200
MAX_RUNNING_BYTES: Final = 64 << 10
MAX_IMAGES_BYTES: Final = 256 << 10
READ_AT_ONCE: Final = 50
"""Messages that one call reads in Redis, which serves no other client meanwhile."""
_ENTRY_ID: Final = re.compile(r"\d{1,20}(-\d{1,20})?\Z")
_GLOB: Final = re.compile(r"[*?\[]")


class RedisFleetState:
    """Reads by scripts that bound each part, so that a forged key costs little."""

    def __init__(self, connections: Connections, queue: str) -> None:
        """`queue` is the one of the settings: it is shown even if it is empty."""
        self._connections, self._queue = connections, queue

    def _run(self, name: str, *args: str | float) -> Any:
        with self._connections.guard():
            return self._connections.script(read_script(name))(args=[KEY_PREFIX, *args])

    def read_summary(self) -> FleetSummary:
        """Read all in two calls; the second one is about the queues that the first one found."""
        with self._connections.guard():
            client: Any = self._connections.redis
            memory: Mapping[str, Any] = client.info("memory")
        answer = self._run("read_fleet", MAX_WORKERS, MAX_MARKS, MAX_QUEUES)
        now, found, raw_cordons, raw_pauses, names, delayed, parked, dead, ended, duplicates = answer
        at = now / MILLI
        cordons, pauses = parse_cordons(raw_cordons), parse_pauses(raw_pauses)
        marks = {cordon.host: cordon for cordon in cordons}
        parts = zip(found[::4], found[1::4], found[2::4], found[3::4], strict=True)
        workers = [parse_worker(*part, at) for part in parts]
        workers = [replace(worker, state=find_state(worker, marks.get(worker.host))) for worker in workers]
        wanted = self._name_queues([name.decode(errors="replace") for name in names], pauses, workers)
        return FleetSummary(
            at=at,
            workers=tuple(sorted(workers, key=lambda worker: (worker.host, worker.owner))),
            cordons=cordons,
            queues=tuple(self._peek(wanted, pauses, workers)),
            delayed=delayed,
            parked=parked,
            dead_letters=dead,
            redis_used=int(memory.get("used_memory", 0)),
            redis_max=int(memory.get("maxmemory", 0)),
            ended_runs=max(0, ended),
            duplicates=duplicates,
        )

    def _name_queues(
        self, used: Sequence[str], pauses: Mapping[str, Pause], workers: Sequence[WorkerStatus]
    ) -> list[str]:
        """Return the queues to show: those with jobs first, if there are too many."""
        named = [queue for worker in workers for queue in worker.queues if not _GLOB.search(queue)]
        wanted = dict.fromkeys(name for name in (self._queue, *sorted(used), *sorted(pauses), *named) if is_queue(name))
        return sorted([*wanted][:MAX_QUEUES])

    def _peek(
        self, names: Sequence[str], pauses: Mapping[str, Pause], workers: Sequence[WorkerStatus]
    ) -> Iterator[QueueState]:
        found: list[int] = self._run("peek_queues", *names) if names else []
        live = [worker for worker in workers if worker.state != "late"]
        for number, name in enumerate(names):
            at = number * (len(PRIORITY_STEPS) + 1)
            counts, oldest = found[at : at + len(PRIORITY_STEPS)], found[at + len(PRIORITY_STEPS)]
            yield QueueState(
                name=name,
                waiting=dict(zip(PRIORITY_STEPS, counts, strict=True)),
                oldest=oldest / MILLI,
                workers=sum(serves(worker, name) for worker in live),
                pause=pauses.get(name),
            )

    def _live_owners(self) -> list[str]:
        with self._connections.guard():
            client: Any = self._connections.redis
            seconds, micros = client.time()
            now = seconds * MILLI + micros // MILLI
            owners = client.zrangebyscore(f"{KEY_PREFIX}owners", f"({now}", "+inf", start=0, num=MAX_WORKERS)
        return [owner.decode(errors="replace") for owner in owners]

    def _read_starts(self, keys: Sequence[str], longest: int) -> list[bytes]:
        """Return the texts of the keys; one that is longer, or of another type, counts as empty."""
        if not keys:
            return []
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for key in keys:
                pipe.getrange(key, 0, longest)
            found = pipe.execute(raise_on_error=False)
        return [raw if isinstance(raw, bytes) and len(raw) <= longest else b"" for raw in found]

    def running_jobs(self, host: str) -> list[RunningJob]:
        """Read what the live workers of the host said at their last beat."""
        owners = [owner for owner in self._live_owners() if host_of_owner(owner) == host]
        found = self._read_starts([running_key(owner) for owner in owners], MAX_RUNNING_BYTES)
        return [job for owner, raw in zip(owners, found, strict=True) for job in parse_running(owner, raw)]

    def host_images(self) -> Mapping[str, Sequence[HostImage]]:
        """Read the lists of the live hosts."""
        hosts = sorted({host_of_owner(owner) for owner in self._live_owners()})
        found = self._read_starts([host_images_key(host) for host in hosts], MAX_IMAGES_BYTES)
        return {host: parse_images(raw) for host, raw in zip(hosts, found, strict=True)}

    def queued_ids(self, queue: str, first: int, count: int) -> list[str]:
        """Read ids of the queue's four lists, one after the other."""
        found: list[str] = []
        for step in PRIORITY_STEPS:
            length = self._count_messages(queue, step)
            skipped = min(first, length)
            first -= skipped
            while skipped < length and len(found) < count:
                read, _, *ids = self._read_part(queue, step, skipped, min(READ_AT_ONCE, count - len(found)), 0.0)
                found += [job_id.decode(errors="replace") for job_id in ids if job_id]
                skipped += read
                if not read:
                    break
        return found

    def whole_queue(self, queue: str, count: int) -> list[str]:
        """Read the four lists from the end that submits fill: claims meanwhile shift nothing there."""
        found: dict[str, None] = {}
        for step in PRIORITY_STEPS:
            passed, read = 0, READ_AT_ONCE
            while read == READ_AT_ONCE and len(found) < count:
                read, _, *ids = self._read_part(queue, step, passed, READ_AT_ONCE, 0.0, end="newest")
                found.update((job_id.decode(errors="replace"), None) for job_id in ids if job_id)
                passed += read
        return [*found][:count]

    def count_expiring(self, queue: str, before: float) -> int:
        """Read the records of the next jobs of the queue's four lists."""
        total, left = 0, MAX_COUNTED
        for step in PRIORITY_STEPS:
            passed, read = 0, READ_AT_ONCE
            while left > 0 and read == READ_AT_ONCE:
                read, expiring, *_ = self._read_part(queue, step, passed, READ_AT_ONCE, before)
                total, passed, left = total + expiring, passed + read, left - read
        return total

    def _count_messages(self, queue: str, step: int) -> int:
        counts: list[int] = self._run("peek_queues", queue)
        return counts[PRIORITY_STEPS.index(step)]

    def _read_part(self, queue: str, step: int, offset: int, limit: int, before: float, *, end: str = "") -> Any:
        key = f"{KEY_PREFIX}{queue}" + (f"\x06\x16{step}" if step else "")
        return self._run("read_queue", key, offset, limit, round(before * MILLI), end)

    def cordon(self, cordon: Cordon) -> None:
        """Write the mark; claims obey it from then on."""
        mark = {"by": cordon.by[:MAX_NOTE], "at": cordon.at, "reason": cordon.reason[:MAX_NOTE]}
        if cordon.deadline is not None:
            mark["deadline"] = cordon.deadline
        self._set_mark("cordons", cordon.host, mark)

    def uncordon(self, host: str) -> bool:
        """Delete the mark, and wake the workers."""
        return bool(self._run("set_mark", "cordons", host, "", MAX_MARKS) == b"removed")

    def pause(self, pause: Pause) -> None:
        """Write the mark; claims obey it from then on."""
        self._set_mark(
            "paused", pause.queue, {"by": pause.by[:MAX_NOTE], "at": pause.at, "note": pause.note[:MAX_NOTE]}
        )

    def resume(self, queue: str) -> bool:
        """Delete the mark, and wake the workers."""
        return bool(self._run("set_mark", "paused", queue, "", MAX_MARKS) == b"removed")

    def _set_mark(self, kind: str, name: str, mark: Mapping[str, object]) -> None:
        if self._run("set_mark", kind, name, json.dumps(mark), MAX_MARKS) == b"full":
            what = "hosts are cordoned" if kind == "cordons" else "queues are paused"
            raise ValueError(f"{MAX_MARKS:,} {what}, and no more can be: take marks away that nobody needs")

    def add_audit(self, entry: AuditEntry) -> None:
        """Append the entry to the stream; Redis's clock gives its time."""
        fields = {
            "by": entry.by,
            "role": entry.role,
            "via": entry.via,
            "action": entry.action,
            "target": entry.target,
            "count": str(entry.count),
            "reason": entry.reason,
            "result": entry.result,
        }
        self._run("add_audit", *list_audit_args(fields))

    def read_audit(self, count: int, before: str = "") -> list[AuditEntry]:
        """Read the stream from its end; what is no id of an entry reads from the end, too."""
        known = before if _ENTRY_ID.match(before) else ""
        return [parse_audit(entry) for entry in self._run("read_audit", min(count, MAX_ENTRIES), known)]
