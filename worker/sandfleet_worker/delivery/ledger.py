"""Calls to Redis of one worker: about its lease, its queues and the jobs of dead workers.

Each is one Lua script.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from sandfleet_config.codes import ErrorCode
from sandfleet_config.messages import describe_cancel
from sandfleet_config.queues import CANCEL_TTL_SECONDS, KEY_PREFIX, host_images_key, is_queue, job_key

from sandfleet_worker.delivery.claim import DEFAULT_MAX_ATTEMPTS, Claim, parse_claim, parse_number
from sandfleet_worker.delivery.claim_calls import ClaimCalls
from sandfleet_worker.delivery.queued_end import FIELDS, new_queued_end
from sandfleet_worker.delivery.replicas import NO_REPLICAS, Replicas

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import redis

    from sandfleet_worker.delivery.identity import Identity
    from sandfleet_worker.metrics.counts import JobCounts

log = logging.getLogger(__name__)

MAX_TAKEN = 32
"""Claims of a dead worker that one call returns."""
MAX_EXPIRED = 100
"""Expired jobs that one call returns."""
MAX_ENDED = 200
"""Jobs that one call finds to be ended, or lets go."""
MAX_QUEUES = 1000
"""How many names of queues one call reads.

Of more it reads others each time, at random, so that each is read sooner or later.
"""
NOTHING_MORE = frozenset((b"none", b"short", b"cordoned"))
"""Answers after which to ask again at once finds nothing."""
LOG_SECONDS = 1.0
"""Least time between two log lines about malformed messages."""


@dataclass(frozen=True)
class DueJobs:
    """Queued jobs that must end with `code`.

    They are those of a stopped batch, or of a group that waits for what failed. Without a name it
    is none: something else was done, and more may be due.
    """

    name: str = ""
    kind: str = ""
    cursor: int = 0
    code: ErrorCode = ErrorCode.CANCELLED
    why: str = ""
    job_ids: Sequence[str] = ()


class Beat(NamedTuple):
    """The answer to a beat: why which jobs are cancelled, and the ids of claims that are not there.

    `mark` is what an operator has written about the host, at `at` in unix time by Redis's clock.
    """

    cancelled: Mapping[str, str]
    missing: Sequence[str]
    mark: bytes = b""
    at: float = 0.0


class LeaseLost(Exception):
    """Another worker has taken this one's jobs over: it must stop them and end."""


class LeaseLate(Exception):
    """The lease has run out, and no worker has taken over yet: renew it first."""


class Ledger(ClaimCalls):
    """The calls of one worker: its lease, its queues, its claims.

    Every method may raise ``redis.RedisError``.
    """

    def __init__(
        self,
        client: redis.Redis,
        identity: Identity,
        result_ttl_seconds: int,
        replicas: Replicas = NO_REPLICAS,
        counts: JobCounts | None = None,
    ) -> None:
        super().__init__(client, identity, result_ttl_seconds, replicas, counts)
        self._malformed = self._kept = 0
        self._malformed_logged = float("-inf")
        self._are_queues_bounded = False
        self.lacks_memory = False
        """Whether the last claim found only jobs that wait for memory of this host."""
        self.is_cordoned = False
        """Whether an operator's mark on this host refused the last claim."""
        self.has_due_jobs = False
        """Whether the last `reap` found that `sweep_parked` has something to do."""

    def register(self, lease_seconds: float) -> None:
        """Begin this worker's lease."""
        me = self._identity
        self._call("register", me.owner, round(lease_seconds * 1000), me.host, me.boot)

    def beat(self, lease_seconds: float, claims: Sequence[Claim], status: str = "", running: str = "") -> Beat:
        """Renew the lease, and say how this worker is and which jobs it has, both as JSON.

        Raises:
            LeaseLost: somebody has taken over.
        """
        names = [name for claim in claims for name in (claim.claim_id, claim.job_id)]
        me = self._identity
        state, *found = self._call("beat", me.owner, round(lease_seconds * 1000), me.host, status, running, *names)
        if state == b"lost":
            raise LeaseLost
        cancelled, missing, now, mark = found
        marks = zip(cancelled[::2], cancelled[1::2], strict=True)
        reasons = {job_id.decode(): describe_cancel(mark.decode(errors="replace")) for job_id, mark in marks}
        return Beat(reasons, [claim_id.decode() for claim_id in missing], mark, now / 1000)

    def tell_images(self, images: str, ttl_seconds: int) -> None:
        """Write which images this host has, as JSON."""
        self._redis.set(host_images_key(self._identity.host), images, ex=ttl_seconds)

    def leave(self) -> int:
        """End the lease; return how many claims are left for others to take over."""
        return int(self._call("leave", self._identity.owner))

    def read_uptime(self) -> float:
        """Return the seconds since Redis started."""
        return float(self._redis.info("server")["uptime_in_seconds"])

    def read_queues(self) -> list[str]:
        """Return the names of queues that may hold jobs, at most `MAX_QUEUES`.

        Those that no queue may have are left out.
        """
        key = f"{KEY_PREFIX}queues"
        names = [name.decode(errors="replace") for name in self._redis.srandmember(key, MAX_QUEUES)]
        is_bounded = len(names) >= MAX_QUEUES
        if is_bounded and not self._are_queues_bounded:
            text = "Redis names %d queues; a worker reads %d at a time, so jobs in them may wait for their turn: see the set %s"
            log.warning(text, self._redis.scard(key), MAX_QUEUES, key, extra={"action": "queues_bounded"})
        self._are_queues_bounded = is_bounded
        return sorted(name for name in names if is_queue(name))

    def claim(
        self, claim_id: str, queues: Iterable[str], facts: Mapping[str, object] = MappingProxyType({})
    ) -> tuple[Claim | None, bool]:
        """Take the next job of `queues`; return it, and whether asking again at once may find one.

        `facts` are what changes from claim to claim, see `claim.lua`.

        Raises:
            LeaseLost: this worker may claim no more.
            LeaseLate: not before the next beat.
        """
        me = self._identity
        known = {"max_attempts": DEFAULT_MAX_ATTEMPTS, "boot": me.boot, **facts}
        text = json.dumps(known, separators=(",", ":"))
        answer = self._call("claim", me.owner, claim_id, me.host, me.worker, text, *queues)
        self.lacks_memory, self.is_cordoned = answer[0] == b"short", answer[0] == b"cordoned"
        match answer[0]:
            case b"lost":
                raise LeaseLost
            case b"late":
                raise LeaseLate
            case state:
                *found, malformed, kept = answer[1:]
                self._log_malformed(malformed, kept)
                return (parse_claim(claim_id, *found) if state == b"job" else None), state not in NOTHING_MORE

    def _log_malformed(self, malformed: int, kept: int) -> None:
        """Log how many malformed messages were found.

        It does so at most once in `LOG_SECONDS`: there may be 100,000.
        """
        self._malformed, self._kept = self._malformed + malformed, self._kept + kept
        if self._malformed and time.monotonic() - self._malformed_logged >= LOG_SECONDS:
            self._malformed_logged = time.monotonic()
            text = "%d malformed messages were set aside, %d of them are kept as dead letters"
            log.warning(text, self._malformed, self._kept, extra={"action": "message_set_aside"})
            self._malformed = self._kept = 0

    def has_other_host(self, needs: str, queue: str, job_id: str) -> bool:
        """Whether another live worker has what a job needs.

        It must take jobs from `queue`, and not have put the job back itself.
        """
        return bool(self._call("other_host", self._identity.owner, needs, queue, job_id))

    def announce(self, facts: str, images: Iterable[str], ttl_seconds: int) -> bool:
        """Say what this host has, for others' claims and submits; return False without a lease."""
        return bool(self._call("announce", self._identity.owner, facts, ttl_seconds, *images))

    def reap(self, *, may_take: bool, passed_over: Iterable[str] = ()) -> tuple[str, list[tuple[Claim, str]]]:
        """Take one dead worker over if `may_take`.

        Return its name and the claims to decide about, each with why it is cancelled. `passed_over`
        are the ids of taken claims that wait for a later try.
        """
        answer = self._call("reap", self._identity.owner, secrets.token_hex(6), MAX_TAKEN, int(may_take), *passed_over)
        taken = []
        self.has_due_jobs = bool(answer[1])
        for at in range(2, len(answer), 11):
            claim_id, *facts, cancelled, state, lost_waits = answer[at : at + 11]
            claim = replace(parse_claim(claim_id.decode(), *facts), lost_waits=parse_number(lost_waits) or 0)
            why = describe_cancel(cancelled.decode(errors="replace")) if cancelled else ""
            taken.append((replace(claim, is_waiting=state == b"waiting"), why))
        return answer[0].decode(errors="replace"), taken

    def cancel(self, job_id: str) -> str:
        """Forbid the job's start, durably; return its state: queued, running, ended or unknown."""
        return str(self._call("cancel", job_id, CANCEL_TTL_SECONDS).decode())

    def end_queued_job(self, code: ErrorCode, job_id: str, message: str) -> bool:
        """End a queued job; return False if it is not queued any more."""
        values = self._redis.hmget(job_key(job_id), *FIELDS)
        return self.end_queued(*new_queued_end(code, job_id, message, values))

    def read_why(self, job_id: str) -> str:
        """Return why a queued job waits, as its record says; empty if it does not say so."""
        why = self._redis.hget(job_key(job_id), "why")
        return why.decode(errors="replace") if why else ""

    def read_fields(self, keys: Sequence[str], names: Sequence[str]) -> list[list[bytes | None]]:
        """Return the fields `names` of each hash, by one round trip.

        A key of a wrong type has none.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(key, *names)
            found = pipe.execute(raise_on_error=False)
        return [values if isinstance(values, list) else [None] * len(names) for values in found]

    def sweep_parked(self, due: DueJobs | None) -> DueJobs | None:
        """Let jobs of a batch or a group go that is due, or return jobs that must end.

        None where nothing is due. After these have ended, `due` is what was returned: the call goes
        on behind them.
        """
        name, kind, cursor = (due.name, due.kind, due.cursor) if due else ("", "", 0)
        answer, *found = self._call("sweep_parked", MAX_ENDED, name, kind, cursor)
        if answer == b"none":
            return None
        if answer == b"again":
            return DueJobs()
        name, kind, cursor, code, why, *ids = found
        texts = [text.decode(errors="replace") for text in (name, kind, why)]
        return DueJobs(texts[0], texts[1], int(cursor), _read_code(code), texts[2], _decode_ids(ids))

    def find_expired(self) -> list[str]:
        """Return queued jobs whose time in the queue is over; drop what is no job's id."""
        seconds, micros = self._redis.time()
        now = seconds * 1000 + micros // 1000
        found = self._redis.zrangebyscore(f"{KEY_PREFIX}expiring", "-inf", now, start=0, num=MAX_EXPIRED)
        job_ids = _decode_ids(found)
        if len(job_ids) < len(found):
            self._redis.zrem(f"{KEY_PREFIX}expiring", *[raw for raw in found if not raw.isascii()])
        return job_ids

    def forget_expiry(self, job_id: str) -> None:
        """Drop the expiry of a job that is not queued."""
        self._redis.zrem(f"{KEY_PREFIX}expiring", job_id)


def _decode_ids(found: Iterable[bytes]) -> list[str]:
    """Return the ids of jobs; leave out a forged one that no job can have."""
    return [raw.decode() for raw in found if raw.isascii()]


def _read_code(raw: bytes) -> ErrorCode:
    """Return the code of a stop; a forged one counts as a cancel."""
    try:
        return ErrorCode(raw.decode(errors="replace"))
    except ValueError:
        return ErrorCode.CANCELLED
