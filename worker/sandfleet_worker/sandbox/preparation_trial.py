"""Prove a preparation: prepare one spare, and run a small job in it. Knows no pool and no demand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources, ImageInvalid, SandboxCreationFailed
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.terminal import safe_text
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.image.users import resolve_user
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.prepared.preparation import Tried
from sandfleet_worker.sandbox.prepared_fit import MARGIN_BYTES, find_misfit
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.packed_job import NO_TRANSFER, pack_spec
from sandfleet_worker.sandbox.verdict import decide

if TYPE_CHECKING:
    from sandfleet_config.settings import HostSettings

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.prepared.preparation import Preparation
    from sandfleet_worker.sandbox.prepared_starts import PreparedStarts
    from sandfleet_worker.sandbox.process.packed_job import PackedJob
    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.sandbox import Sandbox
    from sandfleet_worker.sandbox.provider import SandboxProvider

PROGRAM: Final = "python3"
POLL_SECONDS: Final = 0.02
MARGIN_SECONDS: Final = 30.0
"""How long a boot and a preparation may take beyond their own deadlines, which end them."""
MAX_REASON_CHARS: Final = 500


class PreparationTrial:
    """Tries preparations of a host with sandboxes of `provider`."""

    def __init__(self, config: HostSettings, provider: SandboxProvider, starts: PreparedStarts) -> None:
        self._config, self._provider, self._starts = config, provider, starts

    def run(self, plain: Plan, image: Image, preparation: Preparation) -> Tried:
        """Prepare a spare of `image`, run ``python3 -c pass`` in it, and return what it took.

        `plain` is the plan of its spares without a preparation.

        Raises:
            ImageInvalid: the preparation fails, or no job can start so; says why.
            SandboxError: this host cannot run sandboxes.
        """
        plan = plain.prepared(self._starts.find_interpreter(plain, image, preparation, PROGRAM))
        limits, job = self._new_job(image)
        assert plan.interpreter is not None
        assert job.init is not None  # it is of a spec
        if (misfit := find_misfit(job.init, plan.interpreter.job)) is not None:
            raise _refuse(plan, f"no job of this image fits it ({misfit.value})")
        sandbox = self._provider.boot_spare(plan)
        try:
            self._wait(sandbox, plan)
            assert sandbox.prepared is not None
            tried = Tried(sandbox.prepared.seconds, sandbox.prepared.memory_bytes)
            if limits.memory_bytes < tried.memory_bytes + MARGIN_BYTES:
                need = format_bytes(tried.memory_bytes + MARGIN_BYTES)
                raise _refuse(plan, f"jobs would need {need} of memory (SANDFLEET_POLICY__MEMORY_BYTES)")
            self._run_job(sandbox, plan, limits, job)
        finally:
            sandbox.destroy()
        return tried

    def _new_job(self, image: Image) -> tuple[Admitted, PackedJob]:
        policy = self._config.policy.model_copy(update={"images": ("*",)})
        spec = SandboxSpec(image=image.digest, command=(PROGRAM, "-c", "pass"))
        limits = admit(spec, self._config.model_copy(update={"policy": policy}))
        return limits, pack_spec(limits, image, resolve_user(image, ""), NO_TRANSFER)

    def _wait(self, sandbox: Sandbox, plan: Plan) -> None:
        """Wait until the spare is prepared and idle."""
        assert plan.interpreter is not None
        seconds = self._config.runsc.boot_deadline_seconds + plan.interpreter.seconds + MARGIN_SECONDS
        end = time.monotonic() + seconds
        while sandbox.advance() and not sandbox.is_warm:
            if time.monotonic() > end:
                raise _refuse(plan, f"it did not end within {seconds:g} s")
            time.sleep(POLL_SECONDS)
        if sandbox.is_warm:
            return
        why = sandbox.read_boot_failure()
        if sandbox.prepared is not None and sandbox.prepared.is_host_out_of_memory:
            raise HostResources.of(f"the preparation could not be tried: {why}")
        if sandbox.supervision.clock.ready is None:
            raise SandboxCreationFailed.of(f"the sandbox of the preparation did not boot: {why}")
        raise _refuse(plan, why)

    def _run_job(self, sandbox: Sandbox, plan: Plan, limits: Admitted, job: PackedJob) -> None:
        if not sandbox.wake():
            raise _refuse(plan, "its Python wrote to a job's output, or died, before a job came")
        sandbox.assign(limits)
        measured = sandbox.run(job, limits, Cancellation())
        verdict = decide(measured.facts)
        if verdict.code is not ErrorCode.OK:
            why = verdict.message or f"exit {verdict.exit_code}"
            raise _refuse(plan, f"`{PROGRAM} -c pass` ended with {verdict.code.value} in it: {why}")


def _refuse(plan: Plan, why: str) -> ImageInvalid:
    """Return the refusal; `why` may be a text of the image's code."""
    assert plan.interpreter is not None
    image = plan.interpreter.name.rpartition(":")[0]
    reason = safe_text(why).replace("\n", " ")[:MAX_REASON_CHARS]
    return ImageInvalid.of(f"{image} cannot be prepared as {plan.interpreter.preparation}: {reason}")
