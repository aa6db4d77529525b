"""The `Overview` on Redis: batches and jobs, by pages."""

from __future__ import annotations

import fnmatch
import json
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.queues import (
    KEY_PREFIX,
    batch_key,
    dead_key,
    ends_key,
    host_of_owner,
    job_key,
    list_key,
    spec_key,
)
from sandfleet_config.scripts import PRIORITY_STEPS, read_script

from sandfleet.channel.job_facts import FACT_FIELDS, parse_facts
from sandfleet.channel.overview import BatchEntry, EndedJob, Queued
from sandfleet.channel.record_reader import MILLI
from sandfleet.channel.records import parse_codes
from sandfleet.channel.redis_runs import RedisRuns
from sandfleet.channel.state_values import parse_cordons, parse_pauses

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from sandfleet_config.wire import JobRequest

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.fleet_state import Cordon, Pause
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.overview import ImageChoice, NextRun
    from sandfleet.channel.records import RunState

PAGE_JOBS: Final = 500
BATCHES: Final = f"{KEY_PREFIX}batches"
SEARCHED_AT_ONCE: Final = 100
MAX_SEARCHED: Final = 10_000
"""How many messages of a queue are searched for one job."""


class RedisOverview:
    """Reads with plain commands in pipelines, so that Redis serves others in between."""

    def __init__(self, connections: Connections, keep_inputs: Callable[[Collection[str], float], None]) -> None:
        """`keep_inputs` is that of `RedisRuns`."""
        self._connections = connections
        self._runs = RedisRuns(connections, keep_inputs)

    def list_batches(self, first: int, count: int) -> list[BatchEntry]:
        """Read a page of the sorted set of batches, then the counts of each."""
        with self._connections.guard():
            client: Any = self._connections.redis
            found = client.zrange(BATCHES, first, first + count - 1, desc=True, withscores=True)
            entries = self._read_entries([name.decode(errors="replace") for name, _ in found])
        scored = zip(entries, found, strict=True)
        return [entry._replace(used=score / MILLI) for entry, (_, score) in scored]

    def batch_entry(self, name: str) -> BatchEntry:
        """Read the counts of one batch."""
        with self._connections.guard():
            client: Any = self._connections.redis
            score: float | None = client.zscore(BATCHES, name)
            (entry,) = self._read_entries([name])
        return entry._replace(used=(score or 0.0) / MILLI)

    def _read_entries(self, names: Sequence[str]) -> list[BatchEntry]:
        script = self._connections.script(read_script("read_batch"))
        pipe = self._connections.new_pipe()
        for name in names:
            script(args=[KEY_PREFIX, name, "", 0], client=pipe)
        return [_parse_entry(name, reply) for name, reply in zip(names, pipe.execute(), strict=True)]

    def member_pages(self, name: str) -> Iterator[list[str]]:
        """Read the list of the batch's job ids page by page."""
        at = 0
        while True:
            with self._connections.guard():
                client: Any = self._connections.redis
                page = [item.decode() for item in client.lrange(batch_key(name), at, at + PAGE_JOBS - 1)]
            if page:
                yield list(dict.fromkeys(page))
            if len(page) < PAGE_JOBS:
                return
            at += PAGE_JOBS

    def ended_pages(self, name: str) -> Iterator[list[EndedJob]]:
        """Read the stream of ends page by page, up to the entry that is its newest now."""
        self._import_ends(name)
        newest = self._read_newest(name, 1)
        after, last = "-", newest[0][0] if newest else ""
        while last:
            page = self._read_ends(name, after, last)
            if page:
                yield [job for _, job in page]
            if len(page) < PAGE_JOBS:
                return
            after = f"({page[-1][0]}"

    def _import_ends(self, name: str) -> None:
        """Bring the stream up to date with what workers of an older release recorded."""
        script = self._connections.script(read_script("read_batch"))
        with self._connections.guard():
            while script(args=[KEY_PREFIX, name, "", 0])[4]:
                pass

    def _read_ends(self, name: str, after: str, last: str) -> list[tuple[str, EndedJob]]:
        with self._connections.guard():
            client: Any = self._connections.redis
            return [_parse_end(entry) for entry in client.xrange(ends_key(name), after, last, count=PAGE_JOBS)]

    def _read_newest(self, name: str, count: int) -> list[tuple[str, EndedJob]]:
        with self._connections.guard():
            client: Any = self._connections.redis
            return [_parse_end(entry) for entry in client.xrevrange(ends_key(name), "+", "-", count=count)]

    def newest_ended(self, name: str, count: int) -> list[EndedJob]:
        """Read the stream of ends from its end."""
        return [job for _, job in self._read_newest(name, count)]

    def facts(self, job_ids: Sequence[str]) -> list[JobFacts | None]:
        """Read the records of the jobs."""
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), *FACT_FIELDS)
            found: list[list[bytes | None]] = pipe.execute()
        return [parse_facts(job_id, values) for job_id, values in zip(job_ids, found, strict=True)]

    def find_queued(self, job: JobFacts, *, counts: bool = True) -> Queued:
        """Count the jobs that a claim takes before this one, and list the workers of its queue."""
        with self._connections.guard():
            client: Any = self._connections.redis
            lengths = {step: client.llen(list_key(job.queue, step)) for step in PRIORITY_STEPS if step < job.step}
            place, passed = self._find_place(job) if counts else (None, 0)
            workers = self._read_workers()
        before = None if place is None else sum(lengths.values()) + place
        hosts = sorted({host_of_owner(owner) for owner, text in workers if _serves(text, job.queue)})
        pause, cordons = self._read_marks(job.queue, hosts)
        blocked = tuple(cordons) if len(cordons) == len(hosts) else ()
        return Queued(before, sum(lengths.values()) + passed, len(workers), bool(hosts), pause, blocked)

    def _read_marks(self, queue: str, hosts: Sequence[str]) -> tuple[Pause | None, Sequence[Cordon]]:
        """Return the mark of a queue, and those of hosts that have one."""
        script = self._connections.script(read_script("read_marks"))
        with self._connections.guard():
            raw_pause, raw_cordons = script(args=[KEY_PREFIX, queue, *hosts])
        return parse_pauses(raw_pause).get(queue), parse_cordons(raw_cordons)

    def _find_place(self, job: JobFacts) -> tuple[int | None, int]:
        """Return how many messages of its list come before the job's, and how many were read."""
        script = self._connections.script(read_script("find_message"))
        passed = 0
        while passed < MAX_SEARCHED:
            key = list_key(job.queue, job.step)
            place, read = script(args=[key, job.job_id, passed, SEARCHED_AT_ONCE])
            if place >= 0:
                return passed + place, passed + read
            passed += read
            if read < SEARCHED_AT_ONCE:
                break
        return None, passed

    def _read_workers(self) -> list[tuple[str, bytes]]:
        """Return each live worker and what it has announced, empty if it has not."""
        client: Any = self._connections.redis
        seconds, micros = client.time()
        now = seconds * MILLI + micros // MILLI
        owners = client.zrangebyscore(f"{KEY_PREFIX}owners", now, "+inf")
        texts: list[bytes | None] = client.hmget(f"{KEY_PREFIX}hosts", owners) if owners else []
        return [(owner.decode(errors="replace"), text or b"") for owner, text in zip(owners, texts, strict=True)]

    def kept_requests(self, job_ids: Sequence[str]) -> list[JobRequest | None]:
        """Read dead letters and kept specs."""
        return self._runs.read_requests(job_ids)

    def are_kept(self, job_ids: Sequence[str]) -> list[bool]:
        """Look for a dead letter, a kept spec, or a message that is still in the queue."""
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for job_id in job_ids:
                pipe.exists(dead_key(job_id), spec_key(job_id))
            for job_id in job_ids:
                pipe.hexists(job_key(job_id), "in_queue")
            found = pipe.execute()
        return [bool(kept or queued) for kept, queued in zip(found[: len(job_ids)], found[len(job_ids) :], strict=True)]

    def count_dropped_specs(self) -> int:
        """Read the counter of kept specs that were dropped early."""
        with self._connections.guard():
            client: Any = self._connections.redis
            found: bytes | None = client.hget(f"{KEY_PREFIX}specs_sum", "dropped")
        return int(found) if found and found.isdigit() else 0

    def start_runs(self, runs: Sequence[NextRun], *, images: ImageChoice = "kept") -> list[RunState]:
        """Queue jobs again, some hundred by one call."""
        return self._runs.start(runs, images)

    def forget_pins(self, name: str) -> None:
        """Delete the batch's pins."""
        with self._connections.guard():
            client: Any = self._connections.redis
            client.delete(f"{KEY_PREFIX}pins:{name}")


def _serves(announced: bytes, queue: str) -> bool:
    """Whether a worker that announced so takes jobs from `queue`; one of an older release may."""
    try:
        patterns = json.loads(announced)["queues"]
        return any(fnmatch.fnmatchcase(queue, str(pattern)) for pattern in patterns)
    except (ValueError, KeyError, TypeError):
        return True


def _parse_entry(name: str, reply: Sequence[Any]) -> BatchEntry:
    total, ended, cursor, _, _, counts = reply
    fields = dict(zip(counts[::2], counts[1::2], strict=True))
    return BatchEntry(name, total, ended, parse_codes(fields), b"sealed" in fields, 0.0, _read_time(cursor))


def _parse_end(entry: tuple[bytes, dict[bytes, bytes]]) -> tuple[str, EndedJob]:
    number, fields = entry
    found = EndedJob(fields[b"id"].decode(), int(fields[b"run"]), fields[b"code"].decode(), _read_time(number))
    return number.decode(), found


def _read_time(entry: bytes) -> float:
    """Return the unix time of an entry of a stream."""
    return int(entry.partition(b"-")[0]) / MILLI
