"""Run specs in fresh gVisor sandboxes on this machine, without Celery and Redis.

with RunscRunner() as runner:
    result = runner.run(SandboxSpec(image="python", command=["python3", "-c", "print(1)"]))

A job goes one way: `execute` finds its image, takes a sandbox, runs the job in it, and decides how
it ended.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from sandfleet_config.environment import check_environment
from sandfleet_config.errors import SandboxError
from sandfleet_config.seed_result import to_result
from sandfleet_config.settings import HostSettings
from sandfleet_config.spec import SandboxSpec

from sandfleet_worker.sandbox.capacity import fit_descriptors, fit_memory, give_up_spares
from sandfleet_worker.sandbox.cgroup.tree import find_tree
from sandfleet_worker.sandbox.ending import Ending
from sandfleet_worker.sandbox.host_faults import host_faults
from sandfleet_worker.sandbox.image.datasets import DatasetStore, new_unsupported
from sandfleet_worker.sandbox.image.finder import NO_SHARED_IMAGES, ImageFinder
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.image.users import resolve_user
from sandfleet_worker.sandbox.janitor import Ownership, SweepReport, sweep
from sandfleet_worker.sandbox.memory_budget import MemoryBudget
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.preparation_trial import PreparationTrial
from sandfleet_worker.sandbox.prepared_starts import PreparedStarts
from sandfleet_worker.sandbox.probe import Prober
from sandfleet_worker.sandbox.process.abilities import OTHER_WAY_MAY_WORK, AbilityFinder
from sandfleet_worker.sandbox.process.cancellation import Cancellation, CancelSignal, follow
from sandfleet_worker.sandbox.process.packed_job import NO_TRANSFER, open_transfer, pack_spec
from sandfleet_worker.sandbox.process.plan import Plan
from sandfleet_worker.sandbox.process.runsc import ROOTFS, find_runsc
from sandfleet_worker.sandbox.provider import SandboxProvider, SandboxRequest
from sandfleet_worker.sandbox.start_hooks import NoHooks, OneStart
from sandfleet_worker.sandbox.verdict import decide, is_ok
from sandfleet_worker.sandbox.warm.boot_limit import BootLimit, raise_if_over

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from sandfleet_config.outcome import SandboxResult

    from sandfleet_worker.sandbox.image.datasets import DatasetMount
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.shared import SharedImages
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.prepared.preparation import Preparation, Tried
    from sandfleet_worker.sandbox.prepared.use import PreparedUse
    from sandfleet_worker.sandbox.probe import ProbeReport
    from sandfleet_worker.sandbox.process.packed_job import Transfer, TransferSource
    from sandfleet_worker.sandbox.process.runsc import RunscBinary
    from sandfleet_worker.sandbox.start_hooks import StartHooks

log = logging.getLogger(__name__)

LOCAL_JOB = "local"
_NO_HOOKS: Final = NoHooks()


class RunscRunner:
    """Runs specs in fresh sandboxes; safe for concurrent use. Call `close`, or use ``with``."""

    def __init__(
        self, config: HostSettings | None = None, shared: SharedImages = NO_SHARED_IMAGES, boots: int | None = None
    ) -> None:
        """Set up for `config`, by default of the environment, with images of the fleet; `boots` boot at once."""
        if config is None:
            check_environment()
        self.config = config or HostSettings()
        self._failure = ""
        self._on_failure: Callable[[str], None] = lambda _: None
        self._failure_lock = threading.Lock()
        self.images = ImageStore(self.config.images.root)
        policy = self.config.policy
        self.finder = ImageFinder(self.images, self.config.images, shared, policy.images)
        self.datasets = DatasetStore(self.config.images.root, allowed=policy.datasets)
        self._tree = find_tree(self.config.runsc.cgroup_parent)
        self._owner = Ownership(self.config.runsc.root_dir)
        folder = self._owner.folder
        (folder / ROOTFS).mkdir(mode=0o755)
        self._boot_limit = BootLimit(boots)
        self.descriptors = fit_descriptors(self.config, self._boot_limit.limit)
        starts = self._starts = PreparedStarts(self.config)
        reserved = starts.find_reserved_bytes()
        self.memory = fit_memory(self.config, self._tree, self.descriptors.spares, reserved)
        tree, limit = self._tree, self._boot_limit
        self._provider = SandboxProvider(
            self.config, tree, folder, limit, memory=self.memory, starts=starts, on_failure=self._fail
        )
        self._prober = Prober(self.config, self._provider, folder)
        runsc = self.config.runsc
        self._abilities = AbilityFinder(runsc.root_dir, is_rootless=runsc.rootless, boot=self._prober.boot)

    def __enter__(self) -> Self:
        """Return the runner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runner."""
        self.close()

    def close(self) -> None:
        """Destroy the spares and remove the runner's folder.

        Callers end the sandboxes that run a job first.
        """
        self._provider.close()
        self._owner.release(self._tree)

    def call_on_failure(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the reason when a thread of the runner ends, in that thread.

        At once if one has ended already. Jobs still run then, each in a sandbox that boots for it.
        """
        with self._failure_lock:
            self._on_failure, reason = callback, self._failure
        if reason:
            callback(reason)

    def _fail(self, reason: str) -> None:
        with self._failure_lock:
            callback, self._failure = self._on_failure, reason
        callback(reason)

    def limit_spares(self, lacking_bytes: int) -> MemoryBudget:
        """Keep fewer spares, so jobs have `lacking_bytes` more; return the new memory budget."""
        before, self.memory = self.memory, give_up_spares(self.memory, lacking_bytes)
        if self.memory != before:
            self._provider.resize(self.memory)
        return self.memory

    def sweep(self) -> SweepReport:
        """Remove what dead workers left on this host: sandboxes, and unfinished images."""
        self.images.sweep()
        self.datasets.sweep()
        return sweep(self.config.runsc.root_dir, self._tree)

    def mounts_datasets(self) -> bool:
        """Whether the host's runsc can mount datasets; True until a job has found out."""
        with contextlib.suppress(SandboxError):
            found = find_runsc(self.config.runsc.path)
            if self._abilities.is_known(found):
                return self._abilities.complete(found, self.config.runsc.platform).abilities.mounts_erofs
        return True

    def warm_up(self) -> None:
        """Begin to boot spares of the settings' images, prepared ones, too; warn of one that is not here."""
        self._find_runsc(self.config.runsc.platform)  # else the first job waits for it
        for name in self.config.warm.images:
            try:
                image = self.images.resolve(name)
                self._provider.pin(self._new_plan(image, self.config.runsc.platform), image)
            except (SandboxError, OSError) as error:  # it may be removed at this very moment
                log.warning("no spares of %s: %s", name, error, extra={"action": "warm_up_failed"})

    @property
    def boot_failures(self) -> int:
        """How many spares have failed to boot."""
        return self._provider.pool.booter.failures

    def count_warm(self) -> Mapping[str, int]:
        """Return how many spares idle for each image, by its digest."""
        return self._provider.pool.count_by_image()

    def read_prepared(self) -> PreparedUse:
        """Return how often jobs could start prepared, and why not."""
        return self._starts.read()

    def try_preparation(self, image: Image, preparation: Preparation) -> Tried:
        """Prepare a spare of `image`, and run a job in it; raise as `PreparationTrial.run`."""
        with host_faults(), self.images.hold(image):
            plan = self._new_plan(image, self.config.runsc.platform)
            return PreparationTrial(self.config, self._provider, self._starts).run(plan, image, preparation)

    def drain(self) -> None:
        """Destroy the spares and boot no more; jobs that run go on."""
        self._provider.pool.drain()

    def run(
        self,
        spec: SandboxSpec,
        *,
        deadline: float | None = None,
        cancel: CancelSignal | None = None,
        transfer: Transfer = NO_TRANSFER,
    ) -> SandboxResult:
        """Run `spec` to its end; a non-zero exit is returned.

        Args:
            spec: the job; never changed.
            deadline: a `time.monotonic` instant; the job is killed then, even before its timeout.
            cancel: lets another thread end the job; any ``threading.Event``, or a `Cancellation`.
            transfer: the files that enter the sandbox and leave it; the caller's, not the spec's.

        Raises:
            SandboxError: the class of any other code, with the outcome where the sandbox came up.
        """
        with host_faults(), follow(cancel) as cancellation:  # a thread may follow the signal
            limits = admit(spec, self.config)
            ending = self.execute(limits, deadline=deadline, cancel=cancellation, transfer=transfer)
        return to_result(ending.to_outcome(job_id=LOCAL_JOB, labels=spec.labels))

    def ping(self) -> None:
        """Run a sandbox to prove that this host can; raise as `probe`."""
        self.probe()

    def probe(self, platform: str | None = None) -> ProbeReport:
        """Boot a sandbox on `platform` (default: the host's) and run a program of ours in it.

        Needs no image.

        Raises:
            SandboxError: no job could run: ``GVisorNotAvailable``, ``HostResources``...
        """
        platform = platform or self.config.runsc.platform
        binary = self._find_runsc(platform)
        try:
            return self._prober.boot(binary, platform)
        except SandboxError as error:
            if error.code not in OTHER_WAY_MAY_WORK:
                raise
            # An earlier process may have remembered a way to boot that works no more, as after a
            # move of runsc.
            self._abilities.forget(binary)
            return self._prober.boot(self._find_runsc(platform), platform)

    def execute(
        self,
        limits: Admitted,
        *,
        deadline: float | None = None,
        cancel: Cancellation | None = None,
        hooks: StartHooks = _NO_HOOKS,
        transfer: TransferSource = NO_TRANSFER,
    ) -> Ending:
        """Run one admitted job in a sandbox of its own and return how it ended.

        `hooks` are called before its start. `transfer` are its files: they come from the caller,
        and a function is called once the image is there.

        Raises:
            SandboxError: the sandbox could not be built: image, user, command, files, runsc, a
                limit that cannot be enforced.
        """
        with host_faults():
            return self._execute(limits, deadline, cancel or Cancellation(), hooks, transfer)

    def _execute(
        self,
        limits: Admitted,
        deadline: float | None,
        cancel: Cancellation,
        hooks: StartHooks,
        transfer: TransferSource,
    ) -> Ending:
        asked, spec = time.monotonic(), limits.spec
        cancel.raise_if_set()
        check = functools.partial(raise_if_over, cancel, deadline)
        if spec.datasets and not (runsc := self._find_runsc(limits.platform, hooks)).abilities.mounts_erofs:
            raise new_unsupported(runsc.version)
        with (  # no image is pulled for a job that this host cannot run
            self.datasets.hold(spec.datasets, hooks, check) as datasets,
            self.finder.hold(spec.image, hooks, check) as image,
        ):
            image_seconds = time.monotonic() - asked
            user = resolve_user(image, spec.security.user)
            plan = self._new_plan(image, limits.platform, hooks, datasets)
            job = pack_spec(limits, image, user, open_transfer(transfer))
            request = SandboxRequest(job, limits, cancel, deadline, OneStart(hooks), is_ok)
            measured = self._provider.run(request, plan, image)
        return Ending.of(decide(measured.facts), measured, limits, image_seconds=image_seconds, image=image)

    def _new_plan(
        self, image: Image, platform: str, hooks: StartHooks = _NO_HOOKS, datasets: tuple[DatasetMount, ...] = ()
    ) -> Plan:
        return Plan.of(self._find_runsc(platform, hooks), platform, image.erofs_path, datasets)

    def _find_runsc(self, platform: str, hooks: StartHooks = _NO_HOOKS) -> RunscBinary:
        """Return runsc with its abilities; tell `hooks` if the job has to wait for a probe boot."""
        found = find_runsc(self.config.runsc.path)
        is_known = self._abilities.is_known(found)
        with contextlib.nullcontext() if is_known else hooks.waiting("a probe of runsc"):
            binary = self._abilities.complete(found, platform)
        self._provider.is_quiet = binary.abilities.is_quiet
        return binary
