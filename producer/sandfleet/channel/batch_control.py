"""Control of the queued jobs of a batch: its limits, hold and release, a new priority. On Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sandfleet_config.batch_limits import BatchLimits
from sandfleet_config.queues import KEY_PREFIX, batch_key, is_queue, job_key, limits_key, list_key
from sandfleet_config.scripts import PRIORITY_STEPS, read_script, step_of
from sandfleet_config.units import format_count

from sandfleet.errors import BatchUnknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.after import AfterSpec

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.records import JobRecord

MOVED_AT_ONCE: Final = 300
"""Jobs that one call moves: Redis serves no other client meanwhile."""
READ_AT_ONCE: Final = 1000
"""Names of queues that one round trip asks for."""
MILLI: Final = 1000


class LimitsState(NamedTuple):
    """The limits of a batch in force, and what has become of them.

    `failures` have been counted since they were set. `stopped` is why the batch has stopped, empty
    if it has not. `parked` jobs wait for the batch. `deadline` is unix time.
    """

    limits: BatchLimits
    failures: int = 0
    stopped: str = ""
    is_on_hold: bool = False
    parked: int = 0
    deadline: float | None = None


class BatchControl(Protocol):
    """Part of the transport; each method raises `FleetUnavailable` if it is down."""

    def set_limits(self, name: str, limits: BatchLimits, *, is_submit: bool) -> bool:
        """Set the limits of a batch, which need not exist yet; return whether they begin now.

        A submit does not set again what is in force for jobs that have not all ended.
        """
        ...

    def read_limits(self, name: str) -> LimitsState:
        """Return the limits of a batch, and what has become of them."""
        ...

    def hold(self, name: str) -> None:
        """Let no more jobs of the batch start.

        Raises:
            BatchUnknown: there is no such batch.
        """
        ...

    def release(self, name: str) -> int:
        """End a hold or a stop; return how many jobs went back to their queues at once.

        Raises:
            BatchUnknown: there is no such batch.
        """
        ...

    def set_priority(self, name: str, priority: int) -> int:
        """Give the queued jobs of a batch another priority; return how many got it."""
        ...

    def find_unknown(self, after: AfterSpec) -> str:
        """Return what of `after` does not exist, such as ``job one``; empty if all of it does."""
        ...


class RedisBatchControl:
    """`BatchControl` by Lua scripts that move a few hundred jobs a call."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def set_limits(self, name: str, limits: BatchLimits, *, is_submit: bool) -> bool:
        """Write them into the batch's hash of limits."""
        allowed = 1 if limits.fail_fast else limits.max_failures
        deadline_ms = "" if limits.deadline is None else max(1, round(limits.deadline * MILLI))
        return bool(
            self._run(
                "set_limits",
                name,
                limits.at_most or "",
                allowed or "",
                "1" if limits.fail_fast else "",
                deadline_ms,
                limits.deadline_text,
                "1" if limits.on_stop == "kill" else "",
                "" if is_submit else "1",
            )
        )

    def read_limits(self, name: str) -> LimitsState:
        """Read the batch's hash of limits, and count its parked jobs."""
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            pipe.hgetall(limits_key(name))
            pipe.zcard(f"{KEY_PREFIX}parked:{name}")
            raw, parked = pipe.execute()
        fields = {key.decode(): value.decode(errors="replace") for key, value in raw.items()}
        return _parse_limits(fields, parked)

    def hold(self, name: str) -> None:
        """Mark the batch as held; claims park its jobs when they meet them."""
        self._move(name, "hold")

    def release(self, name: str) -> int:
        """Remove the mark and put parked jobs back into their lists."""
        moved, is_more = self._move(name, "release")
        while is_more:
            count, is_more = self._move(name, "release")
            moved += count
        return moved

    def _move(self, name: str, what: str) -> tuple[int, bool]:
        moved, more = self._run("hold_batch", name, what)
        if moved < 0:
            raise BatchUnknown(f"there is no batch {ascii(name)[1:-1]}, or it ended too long ago")
        return moved, bool(more)

    def set_priority(self, name: str, priority: int) -> int:
        """Move parked jobs by their records, and the others by a second message in the new list."""
        step = str(step_of(priority))
        moved, listed = self._move_all(name, step)
        if not listed:
            return moved
        return moved + sum(self._move_all(name, step, *source)[0] for source in self._find_lists(step))

    def _find_lists(self, step: str) -> list[tuple[str, str]]:
        """Return queue and priority of each list that holds messages, but for those of `step`.

        Names and lengths are read in parts: whoever may write to Redis can name very many queues.
        """
        client: Any = self._connections.redis
        steps, found = [of for of in PRIORITY_STEPS if str(of) != step], list[tuple[str, str]]()
        with self._connections.guard():
            raw = {
                name.decode(errors="replace") for name in client.sscan_iter(f"{KEY_PREFIX}queues", count=READ_AT_ONCE)
            }
            names = sorted(filter(is_queue, raw))
            for start in range(0, len(names), READ_AT_ONCE):
                lists = [(name, of) for name in names[start : start + READ_AT_ONCE] for of in steps]
                pipe = self._connections.new_pipe()
                for name, of in lists:
                    pipe.llen(list_key(name, of))
                lengths = pipe.execute(raise_on_error=False)
                found += [(name, str(of)) for (name, of), length in zip(lists, lengths, strict=True) if length != 0]
        return found

    def _move_all(self, name: str, step: str, queue: str = "", of: str = "") -> tuple[int, int]:
        moved = listed = position = 0
        while position >= 0:
            position, count, others = self._run("move_priority", name, step, position, MOVED_AT_ONCE, queue, of)
            moved, listed = moved + count, listed + others
        return moved, listed

    def find_unknown(self, after: AfterSpec) -> str:
        """Ask for the keys of all of them by one round trip."""
        targets = [("job", job_id, job_key(job_id)) for job_id in after.jobs]
        targets += [("batch", name, batch_key(name)) for name in after.batches]
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for _, _, key in targets:
                pipe.exists(key)
            found: list[int] = pipe.execute()
        missing = [f"{kind} {name}" for (kind, name, _), exists in zip(targets, found, strict=True) if not exists]
        return missing[0] if missing else ""

    def correct_whys(self, records: Sequence[JobRecord | None]) -> list[JobRecord | None]:
        """Return the records with why their batches hold queued jobs back now, where they do.

        A record says what was true when the job was parked.
        """
        names = list(
            dict.fromkeys(record.batch for record in records if record and record.batch and record.state == "queued")
        )
        if not names:
            return list(records)
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for name in names:
                pipe.hmget(limits_key(name), "stopped", "hold", "at_most")
            found = pipe.execute()
        limits = dict(zip(names, found, strict=True))
        return [
            record.model_copy(update={"why": _find_why(record, limits[record.batch])})
            if record and record.batch in limits
            else record
            for record in records
        ]

    def _run(self, name: str, *arguments: Any) -> Any:
        with self._connections.guard():
            return self._connections.script(read_script(name))(args=[KEY_PREFIX, *arguments])


def _parse_limits(fields: Mapping[str, str], parked: int) -> LimitsState:
    def read_number(name: str) -> int | None:
        text = fields.get(name, "")
        return int(text) if text.isdigit() else None

    is_fast, deadline_ms, deadline = "fail_fast" in fields, read_number("deadline_ms"), read_number("deadline")
    limits = BatchLimits(
        max_failures=None if is_fast else read_number("max_failures"),
        fail_fast=is_fast,
        at_most=read_number("at_most"),
        deadline=None if deadline_ms is None else deadline_ms / MILLI,
        on_stop="kill" if "kill" in fields else "keep",
    )
    return LimitsState(
        limits,
        read_number("failures") or 0,
        fields.get("stopped", ""),
        "hold" in fields,
        parked,
        None if deadline is None else deadline / MILLI,
    )


def _find_why(record: JobRecord, limits: Sequence[bytes | None]) -> str:
    """Return why a queued job waits; `limits` are stopped, hold and at_most of its batch."""
    stopped, is_on_hold, at_most = limits
    if stopped:
        return stopped.decode(errors="replace")
    if is_on_hold:
        return f"batch {record.batch} is held: sandfleet batch release {record.batch}"
    if at_most and record.why.startswith(f"batch {record.batch} "):
        number = at_most.decode()
        return f"batch {record.batch} runs at most {format_count(int(number), 'job')} at once (--at-most {number})"
    return record.why
