"""How one sandbox run ended: the verdict with everything that was measured.

The fleet makes an outcome of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self

from sandfleet_config.image_names import REGISTRY_PREFIX
from sandfleet_config.outcome import LimitState, Outcome, Runtime, StreamOutput, Timing, Usage

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.artifacts import Collection
    from sandfleet_worker.sandbox.process.measurement import Measurement
    from sandfleet_worker.sandbox.verdict import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How one sandbox ended; `duration` and `timing` are seconds."""

    verdict: Verdict
    stdout: StreamOutput
    stderr: StreamOutput
    duration: float | None
    timing: Timing
    usage: Usage
    limits: dict[str, LimitState]
    runtime: Runtime
    image_ref: str | None = None
    image_digest: str | None = None
    start: Literal["cold", "warm", "prepared"] = "cold"
    collection: Collection | None = None
    """The artifacts that were collected; None if the job asked for none."""

    @classmethod
    def of(
        cls,
        verdict: Verdict,
        measured: Measurement,
        limits: Admitted,
        *,
        image_seconds: float = 0.0,
        image: Image | None = None,
    ) -> Self:
        """Join the verdict with the figures of its run.

        `image_seconds` is how long it took to find or pull the image.
        """
        plan = measured.plan
        timing = Timing.of(
            image=image_seconds,
            create=measured.create_seconds,
            run=measured.run_seconds,
            collect=measured.collect_seconds,
            cleanup=measured.cleanup_seconds,
        )
        return cls(
            verdict=verdict,
            stdout=measured.stdout,
            stderr=measured.stderr,
            duration=timing.run,
            timing=timing,
            usage=measured.usage,
            limits=limit_states(limits, measured.enforced),
            runtime=Runtime(version=plan.binary.version, platform=plan.platform, warm=measured.is_warm),
            image_ref=image.name if image and image.name.startswith(REGISTRY_PREFIX) else None,
            image_digest=image.digest if image else None,
            start=measured.start,
            collection=measured.collection,
        )

    def to_outcome(self, *, job_id: str, queued: float | None = None, **fields: Any) -> Outcome:
        """Return the outcome of the job `job_id`.

        `fields` are those that only the fleet knows: batch, labels, attempts, host.
        """
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
            timing=replace(self.timing, queued=Timing.of(queued=queued).queued),
            usage=self.usage,
            limits=self.limits,
            runtime=self.runtime,
            image_ref=self.image_ref,
            image_digest=self.image_digest,
            start=None if self.duration is None else self.start,
            **fields,
        )


def limit_states(limits: Admitted, enforced: frozenset[str]) -> dict[str, LimitState]:
    """Return each limit with its value and whether it was enforced.

    Units: bytes, microseconds per 100 ms, processes, seconds.
    """
    return {
        "memory_bytes": _state(limits.memory_bytes, "memory" in enforced),
        "cpu_quota": _state(limits.cpu_quota, "cpu" in enforced),
        "pids_limit": _state(limits.pids_limit, "pids" in enforced),
        "disk_bytes": _state(limits.disk_bytes, "disk" in enforced),
        "timeout": _state(limits.timeout_seconds, True),
        "grace": _state(limits.grace_seconds, True),
        "output_bytes": _state(limits.output_bytes, True),
    }


@lru_cache(maxsize=1024, typed=True)
def _state(value: float, enforced: bool) -> LimitState:  # noqa: FBT001  seven a job, mostly those of the last job
    return LimitState(value=value, enforced=enforced)
