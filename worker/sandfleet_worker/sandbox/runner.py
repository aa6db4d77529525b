"""Run specs in fresh gVisor sandboxes on this machine: no Celery, no Redis.

with RunscRunner() as runner:
    result = runner.run(SandboxSpec(image="python", command=["python3", "-c", "print(1)"]))
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from sandfleet_config.environment import check_environment
from sandfleet_config.errors import HostResources, SandboxError, to_result
from sandfleet_config.outcome import Runtime, StreamOutput, Timing
from sandfleet_config.settings import HostSettings, WorkerSettings
from sandfleet_config.spec import SandboxSpec

from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup
from sandfleet_worker.sandbox.cgroup.tree import find_tree
from sandfleet_worker.sandbox.ending import Ending, limit_states
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.image.users import resolve_user
from sandfleet_worker.sandbox.janitor import Ownership, SweepReport, sweep
from sandfleet_worker.sandbox.memory_budget import MemoryBudget, find_budget
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.probe import pack_probe, probe_job, probe_limits, read_probe
from sandfleet_worker.sandbox.process.abilities import OTHER_WAY_MAY_WORK, AbilityFinder
from sandfleet_worker.sandbox.process.bundle import new_init_job, pack_job
from sandfleet_worker.sandbox.process.cancellation import Cancellation, CancelSignal, follow
from sandfleet_worker.sandbox.process.plan import Plan
from sandfleet_worker.sandbox.process.remover import Remover
from sandfleet_worker.sandbox.process.reports import collect_facts
from sandfleet_worker.sandbox.process.runsc import ROOTFS, SandboxPaths, find_runsc
from sandfleet_worker.sandbox.process.sandbox import Sandbox
from sandfleet_worker.sandbox.start_hooks import NoHooks
from sandfleet_worker.sandbox.verdict import decide
from sandfleet_worker.sandbox.warm.boot_limit import BootTurns, raise_if_over
from sandfleet_worker.sandbox.warm.pool import IDLE_MEMORY_BYTES, WarmPool
from sandfleet_worker.system.descriptors import DescriptorNeed, raise_limit
from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sandfleet_config.outcome import SandboxResult

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.probe import ProbeReport
    from sandfleet_worker.sandbox.process.bundle import PackedJob
    from sandfleet_worker.sandbox.process.runsc import RunscBinary
    from sandfleet_worker.sandbox.start_hooks import StartHooks

log = logging.getLogger(__name__)

LOCAL_JOB = "local"
_NO_HOOKS: Final = NoHooks()


class RunscRunner:
    """Runs specs in fresh sandboxes; safe for concurrent use. Call `close`, or use it as a context manager."""

    def __init__(self, config: HostSettings | None = None) -> None:
        """Set up for `config`, by default the environment's settings."""
        if config is None:
            check_environment()
        self.config = config or HostSettings()
        self._failure = ""
        self._on_failure: Callable[[str], None] = lambda _: None
        self._failure_lock = threading.Lock()
        self.images = ImageStore(self.config.images.root)
        self._tree = find_tree(self.config.runsc.cgroup_parent)
        self._owner = Ownership(self.config.runsc.root_dir)
        (self._owner.folder / ROOTFS).mkdir(mode=0o755)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._turns = BootTurns()
        self.descriptors = self._fit_descriptors()
        self.memory = self._find_memory()
        warm = self.config.warm.model_copy(update={"size": self.memory.spares})
        self._remover = Remover(self._fail)
        self._abilities = AbilityFinder(
            self.config.runsc.root_dir, is_rootless=self.config.runsc.rootless, boot=self._boot_probe
        )
        self._is_quiet = False  # until a runsc is known
        self._warm = WarmPool(warm, self._open_sandbox, self._turns, self._remover, self._fail)

    def __enter__(self) -> Self:
        """Return the runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the runner's folder back."""
        self.close()

    def close(self) -> None:
        """Give the runner's folder back; sandboxes that still run are the callers' to end first."""
        self._warm.close()
        self._remover.close()
        self._owner.release(self._tree)

    def call_on_failure(self, hear: Callable[[str], None]) -> None:
        """Have `hear` called with the reason why a thread of the runner has ended, in that thread; at once if one has already.

        Jobs still run then, each in a sandbox that boots for it.
        """
        with self._failure_lock:
            self._on_failure, reason = hear, self._failure
        if reason:
            hear(reason)

    def _fail(self, reason: str) -> None:
        with self._failure_lock:
            hear, self._failure = self._on_failure, reason
        hear(reason)

    def _fit_descriptors(self) -> DescriptorNeed:
        """Raise the process's limit of open files, and return what fits under it; too low a limit costs sandboxes ahead first."""
        # Without a worker's settings nobody says how many jobs run at once: each asks for itself, see `execute`.
        jobs = self.config.concurrency if isinstance(self.config, WorkerSettings) else 1
        wanted = DescriptorNeed(jobs, self._turns.limit, self.config.warm.size)
        limit = raise_limit(wanted.total)
        fitting = wanted.fit(limit)
        if fitting.spares < wanted.spares:
            text = "open files are limited to %d: %d sandboxes ahead instead of %d, which would need a limit of %d"
            log.warning(
                text, limit, fitting.spares, wanted.spares, wanted.total, extra={"action": "fewer_sandboxes_ahead"}
            )
        return fitting

    def limit_spares(self, lacking_bytes: int) -> MemoryBudget:
        """Keep so many sandboxes ahead less that `lacking_bytes` more are left for jobs; return the memory as it is then."""
        before, self.memory = self.memory, self.memory.lessen(lacking_bytes)
        if self.memory != before:
            self._warm.resize(self.memory.spares)
            text = "memory for jobs is bounded by %s: %d sandboxes ahead instead of %d, beside the host's other workers"
            what = (self.memory.bound, self.memory.spares, before.spares)
            log.warning(text, *what, extra={"action": "fewer_sandboxes_ahead"})
        return self.memory

    def _find_memory(self) -> MemoryBudget:
        """Find how much memory the jobs of this host may use; too little costs sandboxes ahead first."""
        wanted, is_worker = self.descriptors.spares, isinstance(self.config, WorkerSettings)
        found = find_budget(
            self._tree,
            spares=wanted,
            job_bytes=self.config.policy.memory_bytes,
            given_bytes=self.config.memory_budget_bytes if isinstance(self.config, WorkerSettings) else 0,
        )
        if not is_worker:  # nobody counts what runs at once
            return replace(found, spares=wanted)
        if found.spares < wanted:
            text = "memory for jobs is bounded by %s: %d sandboxes ahead instead of %d"
            log.warning(text, found.bound, found.spares, wanted, extra={"action": "fewer_sandboxes_ahead"})
        return found

    def sweep(self) -> SweepReport:
        """Clear what dead workers left on this host."""
        return sweep(self.config.runsc.root_dir, self._tree)

    def warm_up(self) -> None:
        """Begin to boot sandboxes of the images that the settings name; one that is not here is told in the log."""
        for name in self.config.warm.images:
            try:
                self._warm.pin(self._new_plan(self.images.resolve(name), self.config.runsc.platform))
            except (SandboxError, OSError) as error:  # it may be removed at this very moment
                log.warning("no sandboxes of %s ahead: %s", name, error, extra={"action": "warm_up_failed"})

    def drain(self) -> None:
        """Boot nothing ahead any more, and destroy what idles; jobs that run go on."""
        self._warm.drain()

    def run(
        self, spec: SandboxSpec, *, deadline: float | None = None, cancel: CancelSignal | None = None
    ) -> SandboxResult:
        """Run `spec` to its end; a non-zero exit is returned.

        Args:
            spec: what to run; never changed.
            deadline: a `time.monotonic` instant at which the job is killed whatever its own timeout says.
            cancel: lets another thread end the job; any ``threading.Event``, or a `Cancellation`.

        Raises:
            SandboxError: the class of any other code, with the outcome where the sandbox came up.
        """
        with _host_faults(), follow(cancel) as cancellation:  # a thread may follow the signal
            ending = self.execute(admit(spec, self.config), deadline=deadline, cancel=cancellation)
        return to_result(ending.to_outcome(job_id=LOCAL_JOB, labels=spec.labels))

    def ping(self) -> None:
        """Say whether sandboxes can be run at all, by running one.

        Raises:
            GVisorNotAvailable: no.
        """
        self.probe()

    def probe(self, platform: str | None = None) -> ProbeReport:
        """Boot a real sandbox on `platform` (default: the host's) and run a program of ours in it; no image is needed.

        Raises:
            SandboxError: why no job could run: ``GVisorNotAvailable``, ``HostResources``, ``SandboxCreationFailed``...
        """
        platform = platform or self.config.runsc.platform
        binary = self._find_runsc(platform)
        try:
            return self._boot_probe(binary, platform)
        except SandboxError as error:
            if error.code not in OTHER_WAY_MAY_WORK:
                raise
            # What an earlier process remembered may hold no more, as after a move of runsc or of its helpers.
            self._abilities.forget(binary)
            return self._boot_probe(self._find_runsc(platform), platform)

    def _boot_probe(self, binary: RunscBinary, platform: str) -> ProbeReport:
        limits = probe_limits(self.config, platform)
        plan = Plan.of(binary, platform, pack_probe(self._owner.folder, self._lock))
        now = time.monotonic()
        cancel = Cancellation()
        sandbox = self._boot(plan, limits, cancel)
        ending = self._run_in_sandbox(
            sandbox, limits, pack_job(probe_job(limits)), asked=now, resolved=now, deadline=None, cancel=cancel
        )
        return read_probe(ending, is_sentry_nobody=binary.abilities.is_directfs_off)

    def execute(
        self,
        limits: Admitted,
        *,
        deadline: float | None = None,
        cancel: Cancellation | None = None,
        hooks: StartHooks = _NO_HOOKS,
    ) -> Ending:
        """Run one admitted job in a sandbox of its own and return how it ended; `hooks` hear of its way to its start.

        Raises:
            SandboxError: what kept the sandbox from being built: image, user, command, runsc, limits nobody can hold.
        """
        with _host_faults():
            return self._execute(limits, deadline, cancel or Cancellation(), hooks)

    def _execute(self, limits: Admitted, deadline: float | None, cancel: Cancellation, hooks: StartHooks) -> Ending:
        asked = time.monotonic()
        cancel.raise_if_set()
        image = self.images.resolve(limits.spec.image)
        user = resolve_user(image, limits.spec.security.user)
        job = pack_job(new_init_job(limits, image, user))
        with self.images.hold(image, hooks, lambda: raise_if_over(cancel, deadline)):
            resolved = time.monotonic()
            sandbox = self._take(self._new_plan(image, limits.platform, hooks), limits, cancel, deadline, hooks)
            ending = self._run_in_sandbox(
                sandbox, limits, job, asked=asked, resolved=resolved, deadline=deadline, cancel=cancel, hooks=hooks
            )
        return replace(ending, image_digest=image.digest)

    def _new_plan(self, image: Image, platform: str, hooks: StartHooks = _NO_HOOKS) -> Plan:
        return Plan.of(self._find_runsc(platform, hooks), platform, image.erofs_path)

    def _find_runsc(self, platform: str, hooks: StartHooks = _NO_HOOKS) -> RunscBinary:
        """Return the host's runsc with what it can do; a job that has to wait for a probe boot is told so by `hooks`."""
        found = find_runsc(self.config.runsc.path)
        is_known = self._abilities.is_known(found)
        with contextlib.nullcontext() if is_known else hooks.waiting("a probe of runsc"):
            binary = self._abilities.complete(found, platform)
        self._is_quiet = binary.abilities.is_quiet
        return binary

    def _take(
        self, plan: Plan, limits: Admitted, cancel: Cancellation, deadline: float | None, hooks: StartHooks
    ) -> Sandbox:
        """Return a sandbox of `plan` for one job: one that is up, or boots, or a new one."""
        sandbox = self._warm.take(plan) if limits.memory_bytes >= IDLE_MEMORY_BYTES else None
        if sandbox is None:
            return self._boot(plan, limits, cancel, deadline, hooks)
        try:
            sandbox.assign(limits)
        except BaseException:
            sandbox.destroy()
            raise
        return sandbox

    def _boot(
        self,
        plan: Plan,
        limits: Admitted,
        cancel: Cancellation,
        deadline: float | None = None,
        hooks: StartHooks = _NO_HOOKS,
    ) -> Sandbox:
        """Boot a sandbox, under the job's own limits from the start.

        Raises:
            SandboxError: the job was ended, or its deadline came, while it waited for its turn; the sandbox cannot be built.
        """
        turn = self._turns.wait(cancel, deadline, hooks)
        sandbox: Sandbox | None = None
        try:
            sandbox = self._warm.berth() or self._open_sandbox()
            sandbox.supervision.on_booted = turn.end
            sandbox.assign(limits)
            sandbox.boot(plan)
        except BaseException:
            turn.end()
            if sandbox is not None:
                sandbox.destroy()
            raise
        return sandbox

    def _open_sandbox(self) -> Sandbox:
        name = f"{self._owner.name}.{next(self._numbers)}"
        paths, cgroup = SandboxPaths(self._owner.folder / name), SandboxCgroup(self._tree, name)
        settings, allowed = self.config.runsc, self.config.allow_unenforced
        return Sandbox(settings, paths, cgroup, allowed, is_quiet=self._is_quiet, on_left=self._remover.retry).open()

    def _run_in_sandbox(
        self,
        sandbox: Sandbox,
        limits: Admitted,
        job: PackedJob,
        *,
        asked: float,
        resolved: float,
        deadline: float | None,
        cancel: Cancellation,
        hooks: StartHooks = _NO_HOOKS,
    ) -> Ending:
        with sandbox:
            watch = sandbox.supervision
            watch.run(job.message, limits, cancel, deadline, hooks.start)
            runsc_exit = sandbox.wait_exit()
            collected = time.monotonic()
            verdict = decide(collect_facts(sandbox, limits, runsc_exit, job))
            usage = sandbox.cgroup.counters.usage()
        cleaned = time.monotonic()
        clock, plan = watch.clock, sandbox.plan
        assert plan is not None  # it has booted
        run_end = clock.ended or clock.gone or collected
        run = None if clock.started is None else watch.ran_seconds or run_end - clock.started
        return Ending(
            verdict=verdict,
            stdout=watch.stdout.to_output(),
            # Before *started*, only runsc itself can have written there.
            stderr=watch.stderr.to_output() if clock.started is not None else StreamOutput(),
            duration=run,
            timing=Timing(
                image=resolved - asked,
                create=(clock.started or run_end) - (clock.taken or asked),
                run=run,
                collect=collected - run_end,
                cleanup=cleaned - collected,
            ),
            usage=usage,
            limits=limit_states(limits, sandbox.enforced),
            runtime=Runtime(version=plan.binary.version, platform=plan.platform, warm=sandbox.is_warm),
        )


@contextlib.contextmanager
def _host_faults() -> Iterator[None]:
    """Tell a host without a descriptor, a thread, memory or disk left as what it is.

    Raises:
        HostResources: there is none left.
    """
    try:
        yield
    except SandboxError:
        raise
    except Exception as error:
        if not is_resource_error(error):
            raise
        msg = f"this host has no room for the job: {getattr(error, 'strerror', None) or error}"
        raise HostResources.of(msg) from error
