"""Run specs in fresh gVisor sandboxes on this machine: no Celery, no Redis.

with RunscRunner() as runner:
    result = runner.run(SandboxSpec(image="python", command=["python3", "-c", "print(1)"]))
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Self

from sandfleet_config.outcome import Runtime, StreamOutput, Timing
from sandfleet_config.settings import HostSettings, check_environment
from sandfleet_config.spec import SandboxSpec

from sandfleet_worker.policy import admit
from sandfleet_worker.sandbox.bundle import new_init_job
from sandfleet_worker.sandbox.cancellation import Cancellation
from sandfleet_worker.sandbox.cgroups import SandboxCgroup, find_tree
from sandfleet_worker.sandbox.ending import Ending, limit_states
from sandfleet_worker.sandbox.images import ImageStore, resolve_user
from sandfleet_worker.sandbox.janitor import Ownership, SweepReport, sweep
from sandfleet_worker.sandbox.probe import pack_probe, probe_job, probe_limits, read_probe
from sandfleet_worker.sandbox.runsc import SandboxPaths, find_runsc, read_head, read_log_errors
from sandfleet_worker.sandbox.sandbox import Plan, Sandbox
from sandfleet_worker.sandbox.verdict import Facts, decide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from sandfleet_config.outcome import SandboxResult

    from sandfleet_worker.policy import Admitted
    from sandfleet_worker.sandbox.initproto import InitJob
    from sandfleet_worker.sandbox.probe import ProbeReport

LOG_CHARS = 2000
BOOTS_PER_CORE = 2
LOCAL_JOB = "local"


class RunscRunner:
    """Runs specs in fresh sandboxes; safe for concurrent use. Call `close`, or use it as a context manager."""

    def __init__(self, config: HostSettings | None = None) -> None:
        if config is None:
            check_environment()
        self.config = config or HostSettings()
        self.images = ImageStore(self.config.images.root)
        self._tree = find_tree(self.config.runsc.cgroup_parent)
        self._owner = Ownership(self.config.runsc.root_dir)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        # A boot is CPU work (about 0.1 s): more at once than cores can carry would only push each other past their deadline.
        self._boots = threading.BoundedSemaphore(BOOTS_PER_CORE * (os.cpu_count() or 1))

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
        self._owner.release(self._tree)

    def sweep(self) -> SweepReport:
        """Clear what dead workers left on this host."""
        return sweep(self.config.runsc.root_dir, self._tree)

    def run(
        self, spec: SandboxSpec, *, deadline: float | None = None, cancel: Cancellation | None = None
    ) -> SandboxResult:
        """Run `spec` to its end; a non-zero exit is returned.

        Args:
            spec: what to run; never changed.
            deadline: a `time.monotonic` instant at which the job is killed whatever its own timeout says.
            cancel: lets another thread end the job.

        Raises:
            SandboxError: the class of any other code, with the outcome where the sandbox came up.
        """
        ending = self.execute(admit(spec, self.config), deadline=deadline, cancel=cancel)
        return ending.to_outcome(job_id=LOCAL_JOB, labels=spec.labels).to_result()

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
        limits = probe_limits(self.config, platform or self.config.runsc.platform)
        plan = Plan(
            binary=find_runsc(self.config.runsc.path),
            settings=self.config.runsc,
            platform=limits.platform,
            erofs=pack_probe(self._owner.folder, self._lock),
        )
        now = time.monotonic()
        cancel = Cancellation()
        ending = self._run_in_sandbox(
            plan, limits, probe_job(limits), asked=now, resolved=now, deadline=None, cancel=cancel
        )
        return read_probe(ending)

    def execute(self, limits: Admitted, *, deadline: float | None = None, cancel: Cancellation | None = None) -> Ending:
        """Run one admitted job in a sandbox of its own and return how it ended.

        Raises:
            SandboxError: what kept the sandbox from being built: image, user, command, runsc, limits nobody can hold.
        """
        asked = time.monotonic()
        cancel = cancel or Cancellation()
        cancel.raise_if_set()
        image = self.images.resolve(limits.spec.image)
        user = resolve_user(image, limits.spec.security.user)
        job = new_init_job(limits, image, user)
        with self.images.hold(image):
            resolved = time.monotonic()
            plan = Plan(
                binary=find_runsc(self.config.runsc.path),
                settings=self.config.runsc,
                platform=limits.platform,
                erofs=image.erofs_path,
            )
            ending = self._run_in_sandbox(
                plan, limits, job, asked=asked, resolved=resolved, deadline=deadline, cancel=cancel
            )
        return ending.model_copy(update={"image_digest": image.digest})

    def _run_in_sandbox(
        self,
        plan: Plan,
        limits: Admitted,
        job: InitJob,
        *,
        asked: float,
        resolved: float,
        deadline: float | None,
        cancel: Cancellation,
    ) -> Ending:
        with contextlib.ExitStack() as boot:
            boot.enter_context(self._boot_turn(cancel))
            with self._new_sandbox(plan, limits) as sandbox:
                watch = sandbox.supervision
                watch.run(job, limits, cancel, deadline, on_booted=boot.close)
                runsc_exit = sandbox.wait_exit()
                collected = time.monotonic()
                verdict = decide(_new_facts(sandbox, runsc_exit, job.argv[0]))
                usage = sandbox.cgroup.usage()
        cleaned = time.monotonic()
        clock = watch.clock
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
                create=(clock.started or run_end) - clock.spawned,
                run=run,
                collect=collected - run_end,
                cleanup=cleaned - collected,
            ),
            usage=usage,
            limits=limit_states(limits, sandbox.enforced),
            runtime=Runtime(version=plan.binary.version, platform=plan.platform),
        )

    @contextlib.contextmanager
    def _boot_turn(self, cancel: Cancellation) -> Iterator[None]:
        """Wait for a turn to boot a sandbox; the boot deadline runs from then.

        Raises:
            SandboxError: the job was ended while it waited.
        """
        while not self._boots.acquire(timeout=0.05):
            cancel.raise_if_set()
        try:
            yield
        finally:
            self._boots.release()

    def _new_sandbox(self, plan: Plan, limits: Admitted) -> Sandbox:
        name = f"{self._owner.name}.{next(self._numbers)}"
        paths, cgroup = SandboxPaths(self._owner.folder / name), SandboxCgroup(self._tree, name)
        return Sandbox(plan, paths, cgroup, limits, self.config.allow_unenforced)


def _new_facts(sandbox: Sandbox, runsc_exit: int | None, command: str) -> Facts:
    watch = sandbox.supervision
    stderr = "" if watch.clock.started is not None else watch.stderr.to_output().text.strip()[-LOG_CHARS:]
    return Facts(
        kill=watch.kill,
        timed_out=watch.timed_out,
        is_ready=watch.clock.ready is not None,
        is_started=watch.clock.started is not None,
        end=watch.end,
        oom_kills=sandbox.cgroup.oom_kills(),
        pids_fuse_hits=sandbox.cgroup.pids_fuse_hits(),
        is_output_over=watch.is_output_over,
        runsc_exit=runsc_exit,
        runsc_log=read_log_errors(sandbox.paths.log) or stderr,
        panic=read_head(sandbox.paths.panic_log),
        platform=sandbox.plan.platform,
        command=command,
        memory_bytes=sandbox.limits.memory_bytes,
    )
