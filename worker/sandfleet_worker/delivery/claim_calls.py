"""Calls to Redis about one claimed job: it waits, starts and ends. Each is one Lua script."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import KEY_PREFIX, job_key

from sandfleet_worker.delivery.claim import Claim, Refused, parse_attempts, parse_suspect
from sandfleet_worker.delivery.end_calls import EndCalls
from sandfleet_worker.delivery.settlement import FailedAttempt, Finish, GiveBack, PutBack, Release, Retry, Settlement

if TYPE_CHECKING:
    from collections.abc import Iterable

AVOID_SECONDS = 3.0
"""How long a job that failed on a host waits for another host."""
FAILED_DELAY_SECONDS = 1.0
"""How long a job waits for its next try after a fault of ours."""
TAKEN = b"taken-"
"""How the id of a claim begins that was taken over from a dead worker."""


class ClaimCalls(EndCalls):
    """The calls of one worker.

    Each may be repeated when its answer got lost, and may raise ``redis.RedisError``. Those that
    return a bool return False where the job is not this worker's any more: another worker has taken
    it over, or it has ended.
    """

    def limit_attempts(self, claim: Claim, max_attempts: int, queue_ttl_seconds: float) -> bool:
        """Note what the spec of a stock producer's job says, before it starts."""
        limits = (max_attempts, round(queue_ttl_seconds * 1000))
        return bool(self._call("limit_attempts", self._identity.owner, claim.claim_id, claim.job_id, *limits))

    def wait(self, claim: Claim) -> bool:
        """Note that the job waits and has not started: its attempt is taken back."""
        return bool(self._call("wait", self._identity.owner, claim.claim_id, claim.job_id))

    def start(self, claim: Claim, slot: int | None = None) -> Claim | Refused:
        """Note that a job that waited starts, in a slot of this host.

        Return its claim with the attempt, or why it may not start.
        """
        me = self._identity
        place = (me.host, me.worker, me.boot, "" if slot is None else slot)
        answer = self._call("start", me.owner, claim.claim_id, claim.job_id, *place)
        if answer[0] != b"started":
            return Refused(answer[0].decode())
        started = replace(
            claim, is_waiting=False, attempts=parse_attempts(answer[1]), started_monotonic=time.monotonic()
        )
        return replace(started, suspect_seconds=parse_suspect(answer[2]))

    def pin_image(self, batch: str, name: str, digest: str = "") -> str:
        """Return the digest that an image's name means for a batch.

        It is the recorded one, or else `digest`, now recorded.
        """
        return str(self._call("pin_image", batch, name, digest).decode())

    def read_pin(self, job_id: str) -> str:
        """Return the digest of the image that the job's earlier run had.

        Empty where nothing is recorded.
        """
        found = self._redis.hget(job_key(job_id), "pin")
        return found.decode(errors="replace") if isinstance(found, bytes) else ""

    def restore(self, claim: Claim) -> bool:
        """Put a deleted claim back; return False if the job is not ours any more."""
        return bool(self._call("restore", self._identity.owner, claim.claim_id, claim.job_id, claim.message))

    def is_settled(self, claim: Claim) -> bool:
        """Whether Redis has the end of this claim, which whoever settles it may not know yet."""
        claim_id = claim.claim_id.encode()
        if self._redis.hget(job_key(claim.job_id), "ended_by") == claim_id:
            return True
        return bool(self._redis.get(f"{KEY_PREFIX}settled:{claim.claim_id}") == b"given back")

    def read_claim_ids(self) -> set[str]:
        """Return the ids of this worker's claims in Redis, but for those that it took over."""
        found = self._redis.hkeys(f"{KEY_PREFIX}claims:{self._identity.owner}")
        return {raw.decode(errors="replace") for raw in found if not raw.startswith(TAKEN)}

    def recover(self, claim_ids: Iterable[str]) -> list[str]:
        """Decide anew about claims whose end Redis has lost; return the ids of their jobs."""
        return [raw.decode() for raw in self._call("recover", self._identity.owner, *claim_ids)]

    def tell_lost_runs(self, ended: Iterable[Claim]) -> list[str]:
        """Tell which of these claims, whose runs have ended, Redis knows nothing of; return their jobs."""
        words = [word for claim in ended for word in (claim.job_id, claim.claim_id, claim.run)]
        return [raw.decode() for raw in self._call("lost_runs", self._identity.owner, *words)]

    def settle(self, claim: Claim, how: Settlement) -> bool:
        """End `claim` in the way `how`. Every end of a claim comes here."""
        match how:
            case Finish():
                if how.is_drained:
                    self.end_drained_attempt(claim)
                is_ours = self.finish(claim, how.outcome, how.faults, how.dead_letter_reason, how.facts)
                self._note_end(claim.queue, how.outcome, is_ours=is_ours)
                return self._note_attempt(claim, how.outcome.code, is_ours=is_ours, is_cut=how.is_drained)
            case Retry():
                is_ours = self.retry(claim, how.code, how.delay_seconds, how.avoid_host, how.needs)
                return self._note_attempt(claim, how.code, is_ours=is_ours)
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
        """Count the attempt, and queue the job for the next or end it.

        An attempt counts also for a job that waited for its start.
        """
        started = self.start(claim) if claim.is_waiting else claim
        known = started if isinstance(started, Claim) else claim
        if not known.is_last_attempt:
            is_ours = self.retry(known, failed.code, FAILED_DELAY_SECONDS)
        else:
            attempts = known.end_attempts(failed.code)
            outcome = Outcome.of(failed.code, known.job_id, failed.message, attempts=attempts)
            is_ours = self.finish(known, outcome, reason=failed.message)
            self._note_end(claim.queue, outcome, is_ours=is_ours)
        return self._note_attempt(known, failed.code, is_ours=is_ours)

    def retry(
        self, claim: Claim, code: ErrorCode, delay_seconds: float = 0.0, avoid_host: str = "", needs: str = ""
    ) -> bool:
        """End this attempt with `code` and queue the job for the next.

        The next has other `needs` if they are given.
        """
        raised = ("", needs) if needs else ()
        return self._requeue(claim, "retry", *raised, code=code, delay_seconds=delay_seconds, avoid_host=avoid_host)

    def release(self, claim: Claim) -> bool:
        """Queue a job again that has started: its attempt is recorded, not charged."""
        return self._requeue(claim, "release")

    def give_back(self, claim: Claim) -> bool:
        """Queue a job again that has not started, as if it had not been claimed."""
        return self._requeue(claim, "free")

    def put_back(self, claim: Claim, why: PutBack) -> bool:
        """Give back a job that this host cannot run, as if it had not been claimed."""
        queue_ttl_ms = round(why.queue_ttl_seconds * 1000)
        return self._requeue(claim, "putback", why.text, why.needs, queue_ttl_ms, avoid_host=why.avoid_host)

    def _requeue(
        self,
        claim: Claim,
        mode: str,
        *put_back: str | int,
        code: ErrorCode = ErrorCode.WORKER_LOST,
        delay_seconds: float = 0.0,
        avoid_host: str = "",
    ) -> bool:
        """Call the script.

        `put_back` are the arguments of the mode "putback", the first two also of "retry".
        """
        what = (self._identity.owner, claim.claim_id, claim.job_id, mode, code.value)
        when = (round(delay_seconds * 1000), avoid_host, round(AVOID_SECONDS * 1000))
        return bool(self._call("requeue", *what, *when, claim.message, *put_back))

    def end_drained_attempt(self, claim: Claim) -> bool:
        """End the attempt of a job that may not start again, not charged."""
        code = ErrorCode.WORKER_LOST.value
        return bool(self._call("drained", self._identity.owner, claim.claim_id, claim.job_id, code))
