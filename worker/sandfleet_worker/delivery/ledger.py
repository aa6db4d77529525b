"""What one worker asks of Redis about its jobs, one Lua call each; every one may be repeated when its answer got lost."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, assert_never

import redis
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import CANCEL_TTL_SECONDS, KEY_PREFIX, check_queue, job_key
from sandfleet_config.scripts import DEAD_TTL_SECONDS, MAX_DEAD_BYTES, MAX_DEAD_LETTERS, read_script, stored_result
from sandfleet_config.words import OUTPUT_DROPPED

from sandfleet_worker.delivery.claim import (
    DEFAULT_MAX_ATTEMPTS,
    Claim,
    Refused,
    parse_attempts,
    parse_claim,
    parse_number,
    parse_suspect,
)
from sandfleet_worker.delivery.outages import REDIS_ERRORS
from sandfleet_worker.delivery.settlement import FailedAttempt, Finish, GiveBack, PutBack, Release, Retry, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

log = logging.getLogger(__name__)

AVOID_SECONDS = 3.0
"""How long a job that failed on a host waits for another host."""
FAILED_DELAY_SECONDS = 1.0
"""How long a job waits for its next try after a fault of ours."""
MAX_TAKEN = 32
SWEPT_AT_ONCE = 100
MAX_QUEUES = 1000
"""How many names of queues a worker reads at a time. Of more it takes others each time, at random, so that each has its turn."""
TELL_SECONDS = 1.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
DROPPED_FROM_BYTES = 4096
"""Outputs that together are smaller are recorded even beyond maxmemory: the outcome itself takes a quarter of it."""


PACKAGE = "sandfleet_worker.delivery"
SCRIPTS = (
    *("register", "beat", "leave", "announce", "claim", "restore", "limit_attempts", "wait", "start"),
    *("finish", "requeue", "drained", "reap", "other_host", "cancel", "drop_dead"),
)
"""The scripts that a worker calls. Those that are not in this package's ``lua`` are the contract's."""


class LeaseLost(Exception):
    """Another worker has taken this one's jobs over: it must stop them and end."""


class LeaseLate(Exception):
    """The lease has run out, and nobody has taken over yet: renew it first."""


@dataclass(frozen=True)
class Identity:
    """One run of a worker process: its host, its name for people, the owner of its claims in Redis, and its host's boot."""

    host: str
    worker: str
    owner: str
    boot: str = ""
    """Id of the host's boot: another one means that the host's power was cut, or that it was restarted. Empty is unknown."""

    @classmethod
    def new(cls, host: str) -> Identity:
        """Name this process; a process id used again is another owner."""
        return cls(host, f"{host}.{os.getpid()}", f"{host}:{os.getpid()}:{secrets.token_hex(6)}", _read_boot())


def _read_boot() -> str:
    """Return the id that the kernel drew when it booted (random(4)); empty where it tells none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


class Ledger:
    """The claims, leases and endings of one worker in Redis. Every method may raise ``redis.RedisError``."""

    def __init__(self, client: redis.Redis, identity: Identity, result_ttl_seconds: int) -> None:
        self._identity, self._ttl = identity, result_ttl_seconds
        texts = {name: read_script(name, PACKAGE) for name in SCRIPTS}
        self._scripts: dict[str, Any] = {name: client.register_script(text) for name, text in texts.items()}
        self._redis: Any = client
        self._malformed = self._kept = 0
        self._told_malformed = float("-inf")
        self._are_queues_bounded = False
        self.is_short = False
        """Whether the last claim found a job that waits for memory of this host, and no other."""

    def _call(self, name: str, *args: str | float | bytes) -> Any:
        return self._scripts[name](keys=[], args=[KEY_PREFIX, *args])

    def register(self, lease_seconds: float) -> None:
        """Begin this worker's lease."""
        me = self._identity
        self._call("register", me.owner, round(lease_seconds * 1000), me.host, me.boot)

    def beat(self, lease_seconds: float, claims: Sequence[Claim]) -> tuple[list[str], list[str]]:
        """Renew the lease; return which jobs of `claims` are cancelled, and the ids of those claims that are not there.

        Raises:
            LeaseLost: somebody has taken over.
        """
        names = [name for claim in claims for name in (claim.claim_id, claim.job_id)]
        state, *found = self._call("beat", self._identity.owner, round(lease_seconds * 1000), *names)
        if state == b"lost":
            raise LeaseLost
        cancelled, missing = found
        return [job_id.decode() for job_id in cancelled], [claim_id.decode() for claim_id in missing]

    def restore(self, claim: Claim) -> bool:
        """Put a deleted claim back; return False if the job is not ours any more."""
        return bool(self._call("restore", self._identity.owner, claim.claim_id, claim.job_id, claim.message))

    def leave(self) -> int:
        """End the lease; return how many claims are left for others to take over."""
        return int(self._call("leave", self._identity.owner))

    def read_uptime(self) -> float:
        """Return the seconds since Redis started."""
        return float(self._redis.info("server")["uptime_in_seconds"])

    def read_queues(self) -> list[str]:
        """Return the names of queues that may hold jobs, at most `MAX_QUEUES`, without those that no queue may have."""
        key = f"{KEY_PREFIX}queues"
        names = [name.decode(errors="replace") for name in self._redis.srandmember(key, MAX_QUEUES)]
        is_bounded = len(names) >= MAX_QUEUES
        if is_bounded and not self._are_queues_bounded:
            text = "Redis names %d queues; a worker reads %d at a time, so jobs in them may wait for their turn: see the set %s"
            log.warning(text, self._redis.scard(key), MAX_QUEUES, key, extra={"action": "queues_bounded"})
        self._are_queues_bounded = is_bounded
        return sorted(name for name in names if _is_queue_name(name))

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
        text = json.dumps({"max_attempts": DEFAULT_MAX_ATTEMPTS, "boot": me.boot, **facts})
        answer = self._call("claim", me.owner, claim_id, me.host, me.worker, text, *queues)
        self.is_short = answer[0] == b"short"
        match answer[0]:
            case b"lost":
                raise LeaseLost
            case b"late":
                raise LeaseLate
            case state:
                *found, malformed, kept = answer[1:]
                self._tell_set_aside(malformed, kept)
                return (parse_claim(claim_id, *found) if state == b"job" else None), state not in {b"none", b"short"}

    def _tell_set_aside(self, malformed: int, kept: int) -> None:
        """Log what was set aside, at most once in `TELL_SECONDS`: there may be a hundred thousand."""
        self._malformed, self._kept = self._malformed + malformed, self._kept + kept
        if self._malformed and time.monotonic() - self._told_malformed >= TELL_SECONDS:
            self._told_malformed = time.monotonic()
            text = "%d malformed messages were set aside, %d of them are kept as dead letters"
            log.warning(text, self._malformed, self._kept, extra={"action": "message_set_aside"})
            self._malformed = self._kept = 0

    def settle(self, claim: Claim, how: Settlement) -> bool:
        """End `claim` in the way `how`; return False if it is not ours any more. Every end of a claim comes here."""
        match how:
            case Finish():
                if how.is_drained:
                    self.tell_drained(claim)
                return self.finish(claim, how.outcome, how.faults, how.dead_letter_reason)
            case Retry():
                return self.retry(claim, how.code, how.delay_seconds, how.avoid_host)
            case Release():
                return self.release(claim)
            case GiveBack():
                return self.give_back(claim)
            case PutBack():
                return self.put_back(claim, how)
            case FailedAttempt():
                return self._fail_attempt(claim, how)
            case _:
                assert_never(how)

    def _fail_attempt(self, claim: Claim, failed: FailedAttempt) -> bool:
        """Count the attempt, also of a job that waited for its start, and queue the job for the next or end it."""
        started = self.start(claim) if claim.is_waiting else claim
        known = started if isinstance(started, Claim) else claim
        if not known.is_last_attempt:
            return self.retry(known, failed.code, FAILED_DELAY_SECONDS)
        attempts = known.end_attempts(failed.code)
        outcome = Outcome.of(failed.code, known.job_id, failed.message, attempts=attempts)
        return self.finish(known, outcome, reason=failed.message)

    def finish(
        self, claim: Claim, outcome: Outcome, faults: Sequence[Mapping[str, str]] = (), reason: str = ""
    ) -> bool:
        """Record how the job ended, in the dead letters too if there is a `reason`; return False if it is not ours any more.

        Where Redis is at its maxmemory, the outcome is recorded without its output, and says so.
        """
        message = claim.message if reason else b""
        if claim.run != outcome.run:
            outcome = outcome.model_copy(update={"run": claim.run})
        before, after = (self._identity.owner, claim.claim_id), (reason, message)
        if outcome.output_bytes >= DROPPED_FROM_BYTES:
            answer = self._finish(before, outcome, after, faults, droppable=True)
            if answer >= 0:
                return bool(answer)
            log.warning(
                "the output of job %s is dropped: Redis has no memory for %d bytes",
                claim.job_id,
                outcome.output_bytes,
                extra={"action": "output_dropped", "job_id": claim.job_id},
            )
            outcome = outcome.without_output(OUTPUT_DROPPED)
        return bool(self._finish(before, outcome, after, faults))

    def end_queued(self, outcome: Outcome) -> bool:
        """Record the end of a job that nobody has claimed; return False if it is not queued."""
        return bool(self._finish(("", ""), outcome))

    def _finish(
        self,
        holder: tuple[str, str],
        outcome: Outcome,
        dead: tuple[str, bytes] = ("", b""),
        faults: Sequence[Mapping[str, str]] = (),
        *,
        droppable: bool = False,
    ) -> int:
        """Call the script; `holder` are owner and claim, `dead` reason and message for the dead letters."""
        text, (reason, message) = stored_result(outcome, faults), dead
        args = (*holder, outcome.job_id, outcome.code.value, text, self._ttl, reason, DEAD_TTL_SECONDS, message)
        try:
            answer = int(self._call("finish", *args, *(["droppable"] if droppable else [])))
        except redis.exceptions.OutOfMemoryError:
            if not droppable:
                raise
            answer = -1
        if reason and answer >= 0:
            # The end is recorded, whatever becomes of this: a sweep does the same within a minute.
            with contextlib.suppress(*REDIS_ERRORS):
                self.drop_stale_dead()
        return answer

    def retry(self, claim: Claim, code: ErrorCode, delay_seconds: float = 0.0, avoid_host: str = "") -> bool:
        """End this attempt with `code` and queue the job for the next; return False if it is not ours any more."""
        return self._requeue(claim, "retry", code.value, delay_seconds, avoid_host)

    def release(self, claim: Claim) -> bool:
        """Queue a job again that has started: its attempt is told, not charged; return False if it is not ours any more."""
        return self._requeue(claim, "release", ErrorCode.WORKER_LOST.value, 0, "")

    def give_back(self, claim: Claim) -> bool:
        """Queue a job again that has not started, as if it had not been claimed; return False if it is not ours any more."""
        return self._requeue(claim, "free", ErrorCode.WORKER_LOST.value, 0, "")

    def tell_drained(self, claim: Claim) -> bool:
        """End the attempt of a job that may not start again, not charged; return False if it is not ours any more."""
        code = ErrorCode.WORKER_LOST.value
        return bool(self._call("drained", self._identity.owner, claim.claim_id, claim.job_id, code))

    def put_back(self, claim: Claim, why: PutBack) -> bool:
        """Give back a job that this host cannot run, as if it had not been claimed; return False if it is not ours any more."""
        what = (self._identity.owner, claim.claim_id, claim.job_id, "putback", ErrorCode.WORKER_LOST.value)
        when = (0, why.avoid_host, round(AVOID_SECONDS * 1000))
        told = (why.text, why.needs, round(why.queue_ttl_seconds * 1000))
        return bool(self._call("requeue", *what, *when, claim.message, *told))

    def has_other_host(self, needs: str, queue: str, job_id: str) -> bool:
        """Whether another live worker that takes jobs from `queue` has what a job needs, and did not put it back itself."""
        return bool(self._call("other_host", self._identity.owner, needs, queue, job_id))

    def announce(self, facts: str, images: Iterable[str], ttl_seconds: int) -> bool:
        """Say what this host has, for claims and submits of others; return False without a lease."""
        return bool(self._call("announce", self._identity.owner, facts, ttl_seconds, *images))

    def _requeue(self, claim: Claim, mode: str, code: str, delay_seconds: float, avoid_host: str) -> bool:
        what = (self._identity.owner, claim.claim_id, claim.job_id, mode, code)
        when = (round(delay_seconds * 1000), avoid_host, round(AVOID_SECONDS * 1000))
        return bool(self._call("requeue", *what, *when, claim.message))

    def reap(self, *, may_take: bool, passed_over: Iterable[str] = ()) -> tuple[str, list[tuple[Claim, bool]]]:
        """Take one dead worker over if `may_take`; return its name and the claims to decide about, each with "is cancelled".

        `passed_over` are the ids of taken claims that wait for a later try.
        """
        answer = self._call("reap", self._identity.owner, secrets.token_hex(6), MAX_TAKEN, int(may_take), *passed_over)
        taken = []
        for at in range(1, len(answer), 11):
            claim_id, *facts, cancelled, state, lost_waits = answer[at : at + 11]
            claim = replace(parse_claim(claim_id.decode(), *facts), lost_waits=parse_number(lost_waits) or 0)
            taken.append((replace(claim, is_waiting=state == b"waiting"), cancelled == b"1"))
        return answer[0].decode(), taken

    def cancel(self, job_id: str) -> str:
        """Forbid the job's start, durably; return where it stands: queued, running, ended or unknown."""
        return str(self._call("cancel", job_id, CANCEL_TTL_SECONDS).decode())

    def read_place(self, job_id: str) -> dict[str, Any]:
        """Return the batch, the run and the earlier attempts of a queued job, as fields of its outcome."""
        batch, run, attempts = self._redis.hmget(job_key(job_id), "batch", "run", "attempts")
        facts = {"run": parse_number(run or b"") or 1, "attempts": parse_attempts(attempts or b"")}
        return {"batch": batch.decode() if batch else None, **facts}

    def limit_attempts(self, claim: Claim, max_attempts: int) -> bool:
        """Note what the spec of a stock producer's job says, before it starts; return False if it is not ours any more."""
        return bool(self._call("limit_attempts", self._identity.owner, claim.claim_id, claim.job_id, max_attempts))

    def wait(self, claim: Claim) -> bool:
        """Note that the job waits and has not started: its attempt is taken back; return False if it is not ours any more."""
        return bool(self._call("wait", self._identity.owner, claim.claim_id, claim.job_id))

    def start(self, claim: Claim) -> Claim | Refused:
        """Note that a job that waited starts, and return its claim with the attempt, or why it may not start."""
        me = self._identity
        answer = self._call("start", me.owner, claim.claim_id, claim.job_id, me.host, me.worker, me.boot)
        if answer[0] != b"started":
            return Refused(answer[0].decode())
        started = replace(claim, is_waiting=False, attempts=parse_attempts(answer[1]), told=time.monotonic())
        return replace(started, suspect_seconds=parse_suspect(answer[2]))

    def find_expired(self) -> list[str]:
        """Return queued jobs whose time in the queue is over."""
        seconds, micros = self._redis.time()
        now = seconds * 1000 + micros // 1000
        found = self._redis.zrangebyscore(f"{KEY_PREFIX}expiring", "-inf", now, start=0, num=SWEPT_AT_ONCE)
        return [job_id.decode() for job_id in found]

    def forget_expiry(self, job_id: str) -> None:
        """Drop the expiry of a job that is not queued."""
        self._redis.zrem(f"{KEY_PREFIX}expiring", job_id)

    def drop_stale_dead(self) -> None:
        """Drop dead letters whose time is over, and the oldest of too many."""
        self._call("drop_dead", DEAD_TTL_SECONDS, MAX_DEAD_LETTERS, MAX_DEAD_BYTES)


def _is_queue_name(name: str) -> bool:
    try:
        check_queue(name)
    except ValueError:
        return False
    return True
