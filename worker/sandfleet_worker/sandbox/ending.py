"""What a sandbox run yields: the verdict with everything measured, before it becomes an outcome of the fleet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sandfleet_config.outcome import LimitState, Outcome, Record, Runtime, StreamOutput, Timing, Usage

from sandfleet_worker.sandbox.verdict import Verdict

if TYPE_CHECKING:
    from sandfleet_worker.policy import Admitted


class Ending(Record):
    """How one sandbox ended; `duration` and `timing` are seconds."""

    verdict: Verdict
    stdout: StreamOutput = StreamOutput()
    stderr: StreamOutput = StreamOutput()
    duration: float | None = None
    timing: Timing = Timing()
    usage: Usage = Usage()
    limits: dict[str, LimitState]
    runtime: Runtime
    image_digest: str | None = None

    def to_outcome(self, *, job_id: str, queued: float | None = None, **fields: Any) -> Outcome:
        """Return the outcome of the job `job_id`; `fields` are what only the fleet knows: batch, labels, attempts, host."""
        verdict = self.verdict
        return Outcome.of(
            verdict.code,
            job_id,
            verdict.message,
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            timed_out=verdict.timed_out,
            stdout=self.stdout,
            stderr=self.stderr,
            duration=self.duration,
            timing=replace(self.timing, queued=queued),
            usage=self.usage,
            limits=self.limits,
            runtime=self.runtime,
            image_digest=self.image_digest,
            **fields,
        )


def limit_states(limits: Admitted, enforced: frozenset[str]) -> dict[str, LimitState]:
    """Return each limit with its value and whether it held: bytes, microseconds per 100 ms, processes, seconds."""
    return {
        "memory_bytes": LimitState(value=limits.memory_bytes, enforced="memory" in enforced),
        "cpu_quota": LimitState(value=limits.cpu_quota, enforced="cpu" in enforced),
        "pids_limit": LimitState(value=limits.pids_limit, enforced="pids" in enforced),
        "disk_bytes": LimitState(value=limits.disk_bytes, enforced="disk" in enforced),
        "timeout": LimitState(value=limits.timeout_seconds, enforced=True),
        "grace": LimitState(value=limits.grace_seconds, enforced=True),
        "output_bytes": LimitState(value=limits.output_bytes, enforced=True),
    }
