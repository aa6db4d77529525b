"""Prove that this host can run a sandbox.

Boot one from an image of our own, and run one small static program in it.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import ERROR_CLASSES, HostResources
from sandfleet_config.outcome import LimitState
from sandfleet_config.record import Record
from sandfleet_config.spec import SandboxSpec

from sandfleet_worker.sandbox.ending import Ending
from sandfleet_worker.sandbox.image.datasets import DatasetMount
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.bundle import new_rlimits
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.init_job import InitJob, WritablePath
from sandfleet_worker.sandbox.process.packed_job import pack_job
from sandfleet_worker.sandbox.process.plan import Plan
from sandfleet_worker.sandbox.process.runsc import NATIVE
from sandfleet_worker.sandbox.verdict import decide

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_config.settings import HostSettings

    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.runsc import RunscBinary
    from sandfleet_worker.sandbox.provider import SandboxProvider

PROGRAM = "/probe"
PROBE_DATASET = "/data/probe"
PROGRAM_EXIT = 123
"""The exit status of ``launch`` without arguments. It serves as the probe's program because it is
static and small.
"""

NOBODY = 65534
PACK_DEADLINE_SECONDS = 30.0


class ProbeReport(Record):
    """A sandbox that ran; `limits` says which of them the host enforced.

    `boot_seconds`: from the start of the boot to the program's start. `is_sentry_nobody`: the
    sandbox's kernel ran on the host as nobody, without capabilities.
    """

    platform: str
    version: str
    boot_seconds: float
    is_sentry_nobody: bool
    limits: dict[str, LimitState]


class Prober:
    """Boots probe sandboxes from an image that it makes in `folder` at the first call.

    Safe for threads.
    """

    def __init__(self, config: HostSettings, provider: SandboxProvider, folder: Path) -> None:
        self._config, self._provider, self._folder = config, provider, folder
        self._lock = threading.Lock()

    def boot(self, binary: RunscBinary, platform: str) -> ProbeReport:
        """Boot a sandbox with `binary` on `platform` and run the probe's program in it.

        Raises:
            SandboxError: it did not run as it must.
        """
        limits, cancel = probe_limits(self._config, platform), Cancellation()
        image = pack_probe(self._folder, self._lock)
        # As a dataset it is the proof that this runsc mounts datasets.
        datasets = (DatasetMount(PROBE_DATASET, image),) if binary.abilities.mounts_erofs else ()
        plan = Plan.of(binary, platform, image, datasets)
        job = pack_job(probe_job(limits, PROBE_DATASET + PROGRAM if datasets else PROGRAM))
        measured = self._provider.boot(plan, limits, cancel).run(job, limits, cancel)
        ending = Ending.of(decide(measured.facts), measured, limits)
        return read_probe(ending, is_sentry_nobody=binary.abilities.is_directfs_off)


def pack_probe(folder: Path, lock: threading.Lock) -> Path:
    """Return the probe's image in `folder`; make it at the first call.

    Raises:
        HostResources: mkfs.erofs is missing or fails.
    """
    image = folder / "probe.erofs"
    with lock:
        if image.exists():
            return image
        tree = folder / "probe"
        try:
            for name in ("tmp", "data", "dev/shm", "proc", "sys"):
                (tree / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(NATIVE / "launch", tree / PROGRAM.lstrip("/"))
            partial = folder / "probe.partial"
            command = ["mkfs.erofs", "-E", "noinline_data", "--quiet", str(partial), str(tree)]
            subprocess.run(command, check=True, capture_output=True, timeout=PACK_DEADLINE_SECONDS)
            partial.rename(image)
        except (OSError, subprocess.SubprocessError) as error:
            msg = f"cannot pack the probe's image with mkfs.erofs (Debian's package erofs-utils): {error}"
            raise HostResources.of(msg) from error
    return image


def probe_limits(config: HostSettings, platform: str) -> Admitted:
    """Return the host's own ceilings for the probe, on `platform`."""
    spec = SandboxSpec(image="probe", command=(PROGRAM,))
    open_policy = config.policy.model_copy(update={"images": ("*",)})
    limits = admit(spec, config.model_copy(update={"policy": open_policy}))
    return replace(limits, platform=platform, grace_seconds=0.0)


def probe_job(limits: Admitted, program: str = PROGRAM) -> InitJob:
    """Return the job that runs the probe's program as nobody."""
    return InitJob(
        candidates=[program],
        argv=[program],
        envp=[],
        uid=NOBODY,
        gid=NOBODY,
        rlimits=new_rlimits(limits, NOBODY),
        disk_bytes=limits.disk_bytes,
        writable_paths=[WritablePath("/tmp", 0o1777)],  # noqa: S108  the sandbox's own
    )


def read_probe(ending: Ending, *, is_sentry_nobody: bool) -> ProbeReport:
    """Return the report of a probe that ended as it must.

    Raises:
        SandboxError: it ended otherwise; the class of the ending's code.
    """
    verdict = ending.verdict
    if verdict.code is not ErrorCode.EXIT_NONZERO or verdict.exit_code != PROGRAM_EXIT:
        code = verdict.code if verdict.code.category == "host" else ErrorCode.SANDBOX_EXECUTION_FAILED
        msg = verdict.message or f"the probe ended with {verdict.exit_code}, not {PROGRAM_EXIT}"
        raise ERROR_CLASSES[code].of(msg)
    return ProbeReport(
        platform=ending.runtime.platform,
        version=ending.runtime.version,
        boot_seconds=ending.timing.create or 0.0,
        is_sentry_nobody=is_sentry_nobody,
        limits=ending.limits,
    )
