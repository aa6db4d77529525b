"""One sandbox: opened, booted to *ready*, perhaps idle for some time, used for one job, destroyed.

`destroy` removes all of it, and can meet: a runsc that is still alive, stopped or not (killed with
its cgroup), a busy cgroup (retried), files of runsc's state (removed). A sandbox that cannot be
removed is logged and given to `on_not_removed`.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Self

from sandfleet_config.errors import HostResources

from sandfleet_worker.sandbox.process.collection import collect_artifacts
from sandfleet_worker.sandbox.process.config_file import write_config
from sandfleet_worker.sandbox.process.enforcement import require_limits
from sandfleet_worker.sandbox.process.folders import new_folder_error, remove_folder
from sandfleet_worker.sandbox.process.idle import IdleState
from sandfleet_worker.sandbox.process.launcher import Launcher
from sandfleet_worker.sandbox.process.measurement import Measurement, collect_facts, read_counters
from sandfleet_worker.sandbox.process.prepared_state import PreparedState, bound_preparation, explain_failure
from sandfleet_worker.sandbox.process.runsc import SandboxPaths, new_command
from sandfleet_worker.sandbox.process.supervision import Supervision

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sandfleet_config.outcome import Usage
    from sandfleet_config.settings import LimitName, RunscSettings

    from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.artifacts import Collection
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.facts import Facts
    from sandfleet_worker.sandbox.process.packed_job import PackedJob
    from sandfleet_worker.sandbox.process.plan import Plan

log = logging.getLogger(__name__)


class Sandbox:
    """One single-use sandbox.

    Call `open`, `boot`, perhaps `advance` and `wake`, `assign`, and `run`, in this order.
    Enter it to have it destroyed at the end. Open it in a thread that outlives it, see `Launcher`.
    """

    def __init__(
        self,
        settings: RunscSettings,
        paths: SandboxPaths,
        cgroup: SandboxCgroup,
        allow_unenforced: frozenset[LimitName] = frozenset(),
        *,
        is_quiet: bool = False,
        on_not_removed: Callable[[Sandbox], None] = lambda _: None,
    ) -> None:
        self._settings, self._allow_unenforced, self._is_quiet = settings, allow_unenforced, is_quiet
        self._on_not_removed = on_not_removed
        self.paths, self.cgroup = paths, cgroup
        self.plan: Plan | None = None
        self._launcher: Launcher | None = None
        self._idle = IdleState(paths)
        self.prepared: PreparedState | None = None
        self.supervision: Supervision

    def __enter__(self) -> Self:
        """Return the sandbox, which is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Destroy the sandbox and everything it left on the host."""
        self.destroy()

    def open(self) -> Self:
        """Make the folder, the cgroup, the pipes, and a launcher that waits inside.

        It knows neither image nor job.

        Raises:
            HostResources: the host has no descriptor, process, memory or disk left. Nothing
                half-made is left.
        """
        try:
            self._make()
        except BaseException as error:
            self.destroy()
            if isinstance(error, OSError):  # the supervision needs a descriptor
                raise HostResources.of(f"cannot start a sandbox: {error.strerror}") from error
            raise
        return self

    def _make(self) -> None:
        try:
            self.paths.make()
        except OSError as error:
            raise new_folder_error(error) from error
        self.cgroup.make()
        launcher = self._launcher = Launcher.spawn(self._settings, self.cgroup.procs_files, is_quiet=self._is_quiet)
        self.supervision = Supervision(
            pipes=launcher.pipes, pidfd=launcher.pidfd, kill_sandbox=self.kill, end_sandbox=launcher.kill
        )

    def boot(self, plan: Plan) -> None:
        """Start runsc, under the limits that the cgroup has by now.

        Raises:
            HostResources: its folder cannot be written.
        """
        self.plan = plan
        try:
            write_config(self.paths, plan)
        except OSError as error:
            raise new_folder_error(error) from error
        assert self._launcher is not None
        self.supervision.begin_boot(plan.platform, self._settings.boot_deadline_seconds, plan.interpreter)
        if plan.interpreter is not None:
            self.prepared = PreparedState(plan.interpreter, self.cgroup, self.supervision)
        self._launcher.begin(new_command(plan.binary, self._settings, plan.platform, self.paths, self._launcher.passed))

    def boot_spare(self, plan: Plan, memory_bytes: int) -> None:
        """Boot a sandbox without a job, which may use `memory_bytes`; raise as `boot`.

        One that prepares gets one core. Where both cannot be enforced, image code does not run ahead.
        """
        if plan.interpreter is None:
            self.cgroup.limit_memory(memory_bytes)
        else:
            bound_preparation(self.cgroup, memory_bytes)
        self.boot(plan)
        if self.prepared is not None:
            self.prepared.memory_bytes = memory_bytes

    def advance(self) -> bool:
        """Bring a spare one step on: it boots, is up, is told to stop, has stopped.

        Return False where it has died.
        """
        self.supervision.poll()
        if self.supervision.is_gone:
            return False
        if self.supervision.clock.ready is None or self.is_warm:
            return True
        if self.prepared is not None and not self.prepared.advance():
            return True
        if self.plan is not None and self.plan.binary.abilities.is_quiet:
            return self._idle.mark_warm()
        return self._idle.check_stopped() if self.is_stopping else self._idle.stop()

    def read_boot_failure(self) -> str:
        """Say why a spare has died: the reason of our kill, else the end of runsc's messages."""
        return explain_failure(self.supervision, self.prepared)

    @property
    def is_warm(self) -> bool:
        """Whether it is up and idle, and may be given to a job at once."""
        return self._idle.is_warm

    @property
    def is_stopping(self) -> bool:
        """Whether its sentry was told to stop, and has not been seen stopped yet."""
        return self._idle.is_stopping

    def wake(self) -> bool:
        """Make an idle sandbox ready for its job; return False if it has died, or is about to.

        Also if the image's code has written to the job's output while it prepared.
        """
        self.supervision.poll()
        is_clean = self.prepared is None or not self.prepared.has_written()
        return is_clean and not self.supervision.is_gone and self._idle.resume()

    def assign(self, limits: Admitted) -> None:
        """Set the job's limits, in force from now on.

        Raises:
            HostResources: one of them cannot be enforced on this host.
        """
        self.supervision.clock.taken = time.monotonic()
        self.cgroup.apply(limits, is_fresh=self.plan is None)  # the launcher inside is no sandbox yet
        if self.prepared is not None:
            self.prepared.end()
        require_limits(limits, self.enforced | self._allow_unenforced)

    @property
    def enforced(self) -> frozenset[str]:
        """The limits that this host enforces, of memory, cpu, pids, disk."""
        # The disk is a tmpfs that init mounts: no job starts without it.
        return self.cgroup.enforced | {"disk"}

    def run(
        self,
        job: PackedJob,
        limits: Admitted,
        cancel: Cancellation,
        deadline: float | None = None,
        allow_start: Callable[[], None] = lambda: None,
        *,
        is_ok: Callable[[Facts], bool] = lambda _: True,
    ) -> Measurement:
        """Run the job to its end, destroy the sandbox, and return everything that was measured.

        Before that, collect the job's artifacts. Nothing that happens meanwhile changes the facts.

        Args:
            job: the message that gives init its job, its files and its artifacts.
            limits: the limits that `assign` has set.
            cancel: ends the job early.
            deadline: a `time.monotonic` instant at which the job is killed.
            allow_start: called just before the program starts. It does not start if this raises.
            is_ok: whether these facts are those of a job that ended well.
        """
        assert self.plan is not None  # it was booted
        with self:
            self.supervision.run(job, limits, cancel, deadline, allow_start)
            facts, usage, collection = self._read_end(job, limits, cancel, is_ok)
            collected = time.monotonic()
        return Measurement.of(
            self.supervision,
            facts,
            self.plan,
            usage=usage,
            collection=collection,
            collected=collected,
            removed=time.monotonic(),
            enforced=self.enforced,
            is_warm=self.is_warm,
            is_prepared=self.prepared is not None,
        )

    def _read_end(
        self, job: PackedJob, limits: Admitted, cancel: Cancellation, is_ok: Callable[[Facts], bool]
    ) -> tuple[Facts, Usage, Collection | None]:
        """Read how the job has ended, then collect its artifacts, and reap runsc."""
        supervision = self.supervision
        assert self.plan is not None
        runsc_exit = None if supervision.is_held else self.wait_exit()
        counts, usage = read_counters(self.cgroup.counters, supervision)
        if self.prepared is not None:
            usage = self.prepared.leave_out(usage)
        facts = collect_facts(
            supervision, self.plan, self.paths, counts=counts, runsc_exit=runsc_exit, limits=limits, job=job
        )
        collection = collect_artifacts(supervision, job.transfer.artifacts, facts, cancel, is_ok)
        if supervision.is_held:
            supervision.finish()
            self.wait_exit()
        return facts, usage, collection

    def kill(self) -> None:
        """SIGKILL all of it.

        Sentry and stubs die with runsc by their parent-death signal, the rest with the cgroup.
        """
        if self._launcher is not None:
            self._launcher.kill()
        self.cgroup.kill()

    def wait_exit(self) -> int | None:
        """Reap runsc and return its exit status; None if it does not die."""
        return None if self._launcher is None else self._launcher.wait_exit()

    def destroy(self) -> None:
        """Kill and remove everything; idempotent.

        If that fails, `on_not_removed` tries again later.
        """
        if not self.try_destroy():
            self._on_not_removed(self)

    def try_destroy(self) -> bool:
        """Kill and remove everything; return whether it is all gone. Safe to call again."""
        if self._launcher is not None:
            if self._launcher.is_alive():
                self.kill()
                self.wait_exit()
            self._close_supervision()
            self._launcher.close()
        self._idle.close()
        try:
            self.cgroup.remove()
        except HostResources as error:
            log.warning("%s; it is tried again later", error.message, extra={"action": "cgroup_left"})
            return False  # the folder stays: a process in the cgroup may still need it
        return remove_folder(self.paths.folder)

    def _close_supervision(self) -> None:
        """Close the supervision, if there is one yet.

        Release the boot slot of a sandbox that still boots.
        """
        if hasattr(self, "supervision"):
            self.supervision.on_booted()
            self.supervision.close()
