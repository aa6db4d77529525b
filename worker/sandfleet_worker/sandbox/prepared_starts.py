"""Decide which jobs start in a prepared spare, and learn from how that went."""

from __future__ import annotations

import logging
import resource
import signal
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import ImageInvalid, UserInvalid

from sandfleet_worker.sandbox.image.users import resolve_user
from sandfleet_worker.sandbox.prepared.preparation import BARE
from sandfleet_worker.sandbox.prepared.python_source import source
from sandfleet_worker.sandbox.prepared.registry import Preparations
from sandfleet_worker.sandbox.prepared.use import Miss, PreparedCounts
from sandfleet_worker.sandbox.prepared_fit import find_misfit, is_interpreter
from sandfleet_worker.sandbox.process.bundle import (
    HOME_MODE,
    MAX_OPEN_FILES,
    STACK_BYTES,
    TMP_MODE,
    home_of,
    new_env,
)
from sandfleet_worker.sandbox.process.init_job import InitJob, Rlimit, WritablePath, encode_job, exec_candidates
from sandfleet_worker.sandbox.process.init_reports import Signaled
from sandfleet_worker.sandbox.process.interpreter import Interpreter
from sandfleet_worker.sandbox.process.plan import identify
from sandfleet_worker.sandbox.warm.quarantine import Quarantine

if TYPE_CHECKING:
    from sandfleet_config.settings import HostSettings

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.prepared.preparation import Preparation
    from sandfleet_worker.sandbox.prepared.use import PreparedUse
    from sandfleet_worker.sandbox.process.measurement import Measurement
    from sandfleet_worker.sandbox.process.packed_job import PackedJob, Transfer
    from sandfleet_worker.sandbox.process.plan import Plan

log = logging.getLogger(__name__)

EARLY_SECONDS: Final = 0.05
CRASHES: Final = frozenset({signal.SIGSEGV, signal.SIGILL, signal.SIGBUS, signal.SIGFPE})
"""Signals of a broken program, which the processor causes.

SIGABRT counts less: a program may send it to itself.
"""
DISK_BYTES: Final = 1 << 20
"""Space on /tmp and the like during a preparation; nothing may be left there at its end."""
MAX_KNOWN: Final = 256
USUAL_PROGRAM: Final = "python3"
FIRST_DESCRIPTOR, DESCRIPTORS = 5, 5
"""The descriptors that init gives the interpreter, see `native/prepare.h`."""


class PreparedStarts:
    """The prepared starts of one runner; safe for threads."""

    def __init__(self, config: HostSettings) -> None:
        self._config = config
        self.preparations = Preparations(config.images.root, config.prepared)
        self.quarantine = Quarantine(config.prepared)
        self.counts = PreparedCounts()
        self._known: dict[tuple[object, ...], Interpreter] = {}

    def find_reserved_bytes(self) -> int:
        """Return the memory to keep from jobs for prepared spares: none if nothing is prepared here.

        A preparation that is added later takes the places of other spares until the worker starts
        again.
        """
        settings = self._config.prepared
        if settings.start == "off" or not self._config.warm.size:
            return 0
        try:
            is_used = settings.start == "python" or bool(self.preparations.list_all())
        except ImageInvalid:  # the next job that asks for one logs why
            is_used = False
        return settings.budget_bytes if is_used else 0

    def read(self) -> PreparedUse:
        """Return how often jobs could start in a prepared spare, and why not."""
        return self.counts.read(self.quarantine.list_held(self.is_listed))

    def choose(self, plan: Plan, image: Image, limits: Admitted, packed: PackedJob) -> Plan | None:
        """Return the plan of the prepared spares that this job fits; None: it starts without one."""
        job = packed.init
        wanted = limits.spec.prepared
        preparation = self.preparations.find(image.name, image.digest, wanted)
        if preparation is None or job is None:
            if wanted is not None and wanted != "off" and self._config.prepared.start != "off":
                self.counts.note_miss(Miss.UNKNOWN)
            return None
        if not is_interpreter(job.argv[0]):
            if preparation != BARE:
                self.counts.note_miss(Miss.COMMAND)
            return None
        prepared = self._try_plan(plan, image, preparation, job.argv[0])
        miss = prepared if isinstance(prepared, Miss) else self._find_miss(prepared, job, packed.transfer)
        if miss is not None:
            self.counts.note_miss(miss)
        return None if miss is not None or isinstance(prepared, Miss) else prepared

    def _try_plan(self, plan: Plan, image: Image, preparation: Preparation, program: str) -> Plan | Miss:
        """Return the plan of such spares, or why there can be none: no job fails for that."""
        try:
            return plan.prepared(self.find_interpreter(plan, image, preparation, program))
        except UserInvalid:  # of the image; the job may name another user
            return Miss.USER
        except ImageInvalid:
            return Miss.INTERPRETER
        except FileNotFoundError:  # runsc is just replaced, or gone: then the job's own start says so
            return Miss.NO_SPARE

    def _find_miss(self, plan: Plan, job: InitJob, transfer: Transfer) -> Miss | None:
        assert plan.interpreter is not None
        if plan.interpreter.job.uid == 0:
            return Miss.USER
        files = (file.absolute for file in transfer.files)
        if (misfit := find_misfit(job, plan.interpreter.job, files)) is not None:
            return misfit
        if self.quarantine.holds(plan):
            return Miss.INTERPRETER if self.quarantine.is_unfit(plan) else Miss.QUARANTINE
        return None

    def find_interpreter(self, plan: Plan, image: Image, preparation: Preparation, program: str) -> Interpreter:
        """Return the interpreter that spares of `plan` start as `program`, with `preparation`.

        Raises:
            SandboxError: as `new_interpreter`.
            OSError: runsc is gone.
        """
        runsc = identify(plan.binary.path)
        key = (plan.identity, runsc, preparation, program, image.name)
        if (known := self._known.get(key)) is None:
            known = new_interpreter(self._config, image, preparation, program, runsc)
            if len(self._known) >= MAX_KNOWN:
                self._known = {}
            self._known[key] = known
        return known

    def list_plans(self, plan: Plan, image: Image) -> list[Plan]:
        """Return the plans of the prepared spares of `image`, for jobs that call `python3`.

        Raises:
            SandboxError: as `find_interpreter`.
            OSError: runsc is gone.
        """
        start = self._config.prepared.start
        if start == "off":
            return []
        found = self.preparations.list_of(image.name, image.digest)
        if start == "python":
            found.append(BARE)
        return [plan.prepared(self.find_interpreter(plan, image, one, USUAL_PROGRAM)) for one in found]

    def is_listed(self, plan: Plan) -> bool:
        """Whether spares of `plan` are still to be kept: nobody has changed or removed its preparation."""
        interpreter = plan.interpreter
        if interpreter is None:
            return True
        if interpreter.preparation == BARE:
            return self._config.prepared.start == "python"
        image, name = interpreter.name.rpartition(":")[0], interpreter.preparation.name
        try:
            return self.preparations.find(image, plan.digest, name) == interpreter.preparation
        except OSError:  # the list cannot be read now
            return True

    def note_lost(self, plan: Plan, why: str, *, is_counted: bool = True) -> bool:
        """Log an interpreter that did not become its job; return whether its plan is held now.

        It counts as a failure unless `is_counted` is False.
        """
        name = plan.interpreter.name if plan.interpreter else ""
        text = "a spare of the preparation %s was lost before its job started, which gets another sandbox: %s"
        log.warning(text, name, why, extra={"action": "prepared_spare_lost"})
        return is_counted and self.quarantine.note_failure(plan, why)

    def note_end(self, plan: Plan, measured: Measurement) -> bool:
        """Count a job of a prepared spare; return whether its plan is held now."""
        self.counts.note_start()
        end = measured.facts.end
        early = end.signal if isinstance(end, Signaled) and (measured.run_seconds or 0.0) < EARLY_SECONDS else 0
        return self.quarantine.note_job(plan, has_crashed=early in CRASHES, has_aborted=early == signal.SIGABRT)


def new_interpreter(
    config: HostSettings, image: Image, preparation: Preparation, program: str, runsc: tuple[int, ...]
) -> Interpreter:
    """Return the interpreter as `program`, as a job of `image` without an `env` would find it.

    Raises:
        UserInvalid: the image does not list its own user.
        ImageInvalid: init's message cannot hold it: the environment is too long, or HOME is no path.
    """
    try:
        job = _new_job(config, image, preparation, program)
        message = encode_job(job)
    except ValueError as error:
        raise ImageInvalid.of(f"image {image.name} cannot be prepared: {error}") from error
    settings = config.prepared
    return Interpreter(
        preparation=preparation,
        message=message,
        runsc=runsc,
        seconds=settings.deadline_seconds,
        memory_bytes=min(settings.spare_bytes, settings.budget_bytes),
        job=job,
        name=f"{image.name}:{preparation.name or 'python'}",
    )


def _new_job(config: HostSettings, image: Image, preparation: Preparation, program: str) -> InitJob:
    user = resolve_user(image, "")
    home = home_of(image, user)
    env = new_env(image.env, (), home)
    modes = {"/tmp": TMP_MODE, "/dev/shm": TMP_MODE}  # noqa: S108  folders of the sandbox, not of the host
    if image.has_directory(home):
        modes.setdefault(home, HOME_MODE)
    numbers = [str(FIRST_DESCRIPTOR + number) for number in range(DESCRIPTORS)]
    processes = config.policy.pids_limit - 1
    return InitJob(
        candidates=exec_candidates(program, env["PATH"]),
        argv=[program, "-c", source(), *numbers, ",".join(preparation.modules), *modes],
        envp=[f"{key}={value}" for key, value in env.items()],
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        rlimits=[
            Rlimit(resource.RLIMIT_NPROC, processes, processes),
            Rlimit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
            Rlimit(resource.RLIMIT_CORE, 0, 0),
            Rlimit(resource.RLIMIT_STACK, STACK_BYTES, STACK_BYTES),
        ],
        disk_bytes=DISK_BYTES,
        writable_paths=[WritablePath(path, mode) for path, mode in modes.items()],
        is_preparation=True,
    )
