"""Everything that was measured of one sandbox and its job, collected when the sandbox has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import StreamOutput, Usage

from sandfleet_worker.sandbox.cgroup.counters import Counts
from sandfleet_worker.sandbox.process.facts import PANIC_CHARS, Facts
from sandfleet_worker.sandbox.process.init_reports import Exited, Signaled
from sandfleet_worker.sandbox.process.runsc import read_head, read_log_errors
from sandfleet_worker.sandbox.process.sidecars import OPAQUE_FAILURE, find_sidecar_fault

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.cgroup.counters import Counters
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.artifacts import Collection
    from sandfleet_worker.sandbox.process.packed_job import PackedJob
    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.runsc import SandboxPaths
    from sandfleet_worker.sandbox.process.supervision import Supervision

LOG_CHARS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One sandbox and its job, after both have ended.

    `create_seconds` count from the moment the sandbox got its job to the program's start, or to the
    end of a sandbox whose program never started. Then `run_seconds` is None. `enforced` names the
    limits that were in force. `collection` is None where nothing was to be collected.
    """

    facts: Facts
    stdout: StreamOutput
    stderr: StreamOutput
    create_seconds: float
    run_seconds: float | None
    collect_seconds: float
    cleanup_seconds: float
    usage: Usage
    enforced: frozenset[str]
    plan: Plan
    is_warm: bool
    is_prepared: bool = False
    collection: Collection | None = None

    @property
    def start(self) -> Literal["cold", "warm", "prepared"]:
        """How the job has started."""
        return "prepared" if self.is_prepared else "warm" if self.is_warm else "cold"

    @property
    def is_lost(self) -> bool:
        """Whether a prepared sandbox failed before its job started: the job gets another one.

        Nobody has asked for that end. Whatever init reported then, the image's code may have caused.
        """
        kill = self.facts.kill
        is_ours = kill is None or kill.code is ErrorCode.SANDBOX_CREATION_FAILED
        return self.is_prepared and not self.facts.is_started and is_ours

    @classmethod
    def of(
        cls,
        supervision: Supervision,
        facts: Facts,
        plan: Plan,
        *,
        usage: Usage,
        collection: Collection | None,
        collected: float,
        removed: float,
        enforced: frozenset[str],
        is_warm: bool,
        is_prepared: bool = False,
    ) -> Self:
        """Join `facts` with the outputs and durations of a sandbox that is destroyed.

        `collected` is when runsc was reaped, `removed` when the sandbox was destroyed.
        """
        clock = supervision.clock
        assert clock.taken is not None  # by `Sandbox.assign`
        ended = clock.ended or clock.gone or collected
        run_seconds = None if clock.started is None else _find_ran_seconds(facts) or ended - clock.started
        return cls(
            facts=facts,
            # Before *started*, only runsc itself and code that ran ahead can have written there.
            stdout=supervision.outputs.stdout.to_output() if clock.started is not None else StreamOutput(),
            stderr=supervision.outputs.stderr.to_output() if clock.started is not None else StreamOutput(),
            create_seconds=(clock.started or ended) - clock.taken,
            run_seconds=run_seconds,
            collect_seconds=collected - ended,
            cleanup_seconds=removed - collected,
            usage=usage,
            enforced=enforced,
            plan=plan,
            is_warm=is_warm,
            is_prepared=is_prepared,
            collection=collection,
        )


def _find_ran_seconds(facts: Facts) -> float | None:
    """Return how long the program ran by the sandbox's own clock; None where init could not say."""
    return facts.end.ran_microseconds / 1e6 if isinstance(facts.end, Exited | Signaled) else None


def read_counters(counters: Counters, supervision: Supervision) -> tuple[Counts, Usage]:
    """Return what the kernel has counted, and the usage.

    Nothing was counted where no descriptor is left to ask, if the end is certain without it: the
    job has exited 0, or it was told to end.

    Raises:
        OSError: no descriptor is left, and only the counters tell why the job ended.
    """
    try:
        return counters.read_end()
    except OSError:
        has_exited_ok = isinstance(supervision.end, Exited) and supervision.end.code == 0
        if not has_exited_ok and supervision.kill is None and supervision.timed_out is None:
            raise
        return Counts(), Usage()


def collect_facts(
    supervision: Supervision,
    plan: Plan,
    paths: SandboxPaths,
    *,
    counts: Counts,
    runsc_exit: int | None,
    limits: Admitted,
    job: PackedJob,
) -> Facts:
    """Return the facts from which `verdict.decide` tells how the job ended.

    Call it while the sandbox's files exist.
    """
    # Init's report makes runsc's own messages useless: two files less to read.
    runsc_log, panic = ("", "") if supervision.end is not None else _read_logs(supervision, plan, paths)
    return Facts(
        kill=supervision.kill,
        timed_out=supervision.timed_out,
        is_ready=supervision.clock.ready is not None,
        is_started=supervision.clock.started is not None,
        end=supervision.end,
        counts=counts,
        overwritten=_find_overwritten(supervision, plan),
        is_output_over=supervision.outputs.is_over,
        runsc_exit=runsc_exit,
        runsc_log=runsc_log,
        panic=panic,
        platform=plan.platform,
        command=job.command,
        longest_argument_bytes=job.longest_argument_bytes,
        memory_bytes=limits.memory_bytes,
        disk_bytes=limits.disk_bytes,
        file_paths=[file.path for file in job.transfer.files],
        file_bytes=sum(file.size for file in job.transfer.files),
    )


def _find_overwritten(supervision: Supervision, plan: Plan) -> str:
    """Name the file that was written to while the sandbox ran from it; empty if none was.

    A job that ended well does not ask.
    """
    has_ended_well = isinstance(supervision.end, Exited) and supervision.end.code == 0
    return "" if has_ended_well else plan.find_overwritten()


def _read_logs(supervision: Supervision, plan: Plan, paths: SandboxPaths) -> tuple[str, str]:
    """Return runsc's messages and the start of a panic.

    The messages come from runsc's log. Where that is empty they come from stderr, as far as it was
    written before the program started.
    """
    outputs = supervision.outputs
    stderr = outputs.boot_stderr.to_output().text
    if supervision.clock.started is None and outputs.stderr is not outputs.boot_stderr:
        stderr += outputs.stderr.to_output().text
    text, panic = read_log_errors(paths.log) or stderr.strip()[-LOG_CHARS:], read_head(paths.panic_log)
    if OPAQUE_FAILURE in text:
        cause = find_sidecar_fault(plan.binary) or panic.strip()[:PANIC_CHARS]
        text = f"{text}; {cause}" if cause else text
    return text, panic
