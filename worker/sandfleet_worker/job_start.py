"""One job from its claim to its start.

A job that waits has not started, and gives its slot back while it waits long.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources, ImageInvalid
from sandfleet_config.messages import CANCELLED
from sandfleet_config.units import format_bytes

from sandfleet_worker.delivery.claim import Claim, Refused
from sandfleet_worker.delivery.host_mark import CORDONED
from sandfleet_worker.sandbox.image.references import is_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_worker.delivery.host_memory import HostMemory
    from sandfleet_worker.delivery.host_slots import HostSlots
    from sandfleet_worker.delivery.intake import Intake
    from sandfleet_worker.sandbox.process.cancellation import Cancellation

log = logging.getLogger(__name__)

LONG_WAIT_SECONDS = 1.0
"""A job that waits longer gives its slot back."""
MEMORY_POLL_SECONDS = 0.1
CANCEL_POLL_SECONDS = 0.1
TAKEN_OVER = "another worker has taken the job over"


@contextmanager
def long_wait(act: Callable[[Claim], None], claim: Claim) -> Iterator[None]:
    """Call `act` with `claim`, in another thread, if the block takes longer than `LONG_WAIT_SECONDS`."""
    timer = threading.Timer(LONG_WAIT_SECONDS, act, (claim,))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread is left: it waits with its slot
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class JobStart:
    """Records in Redis that the job of `claim` waits, and that it starts. Used in the job's thread.

    `on_start` is called once, just before the program starts. A job that may not start is ended by
    `cancel`.
    """

    def __init__(
        self, intake: Intake, slots: HostSlots, claim: Claim, cancel: Cancellation, on_start: Callable[[], None]
    ) -> None:
        self._intake, self._slots, self._cancel, self._on_start = intake, slots, cancel, on_start
        self.claim = claim
        """The claim as it is now; its attempts change when the job waits and when it starts."""
        self.has_started = False
        """Whether the program may have started."""
        self.batch = ""
        """The job's batch, whose jobs all run the same digest of a name."""
        self.pinned = ""
        """The digest that the job must run: its batch runs it, or its earlier run had it."""

    @contextmanager
    def waiting(self, why: str, *, is_remote: bool = False) -> Iterator[None]:
        """Wait as a job that has not started.

        The slot is given back after `LONG_WAIT_SECONDS`, and taken again at the end. If it
        `is_remote`, the worker runs another job meanwhile.

        Raises:
            SandboxError: the job was cancelled or withdrawn meanwhile, or another worker has it.
        """
        self._begin_wait(why, is_remote=is_remote)
        try:
            with long_wait(self._intake.held_claims.give_back_slot, self.claim):
                yield
        finally:
            is_given_back = self._intake.held_claims.end_wait(self.claim)
        if is_given_back:
            self._take_slot()

    def start(self) -> None:
        """Note the attempt of a job that has waited, and let the program start.

        Raises:
            SandboxError: the job was cancelled or withdrawn meanwhile, or another worker has it.
        """
        self._cancel.raise_if_set()
        self.note_attempt()
        self.has_started = True
        self._on_start()

    def note_attempt(self) -> None:
        """Record the attempt of a job that has waited: it starts, or fails.

        Raises:
            SandboxError: as `start`.
        """
        if not self.claim.is_waiting:
            return
        match self._intake.start_job(self.claim):
            case Claim() as claim:
                self.claim = claim
                self._intake.held_claims.start(claim)
            case Refused.CANCELLED:
                self._cancel.cancel(ErrorCode.CANCELLED, CANCELLED)
            case Refused.CORDONED:
                self._cancel.cancel(ErrorCode.WORKER_LOST, CORDONED)
            case Refused.FENCED:
                self._cancel.cancel(ErrorCode.WORKER_LOST, TAKEN_OVER)
        self._cancel.raise_if_set()

    def find_digest(self, name: str) -> str:
        """Return the digest that the image's `name` means for the batch.

        Else the one that it meant for the job's earlier run; else nothing.

        Raises:
            ImageInvalid: Redis holds no digest there.
        """
        found = self.pin_digest(name, "")
        if not found and self.claim.run > 1:
            found = self.pinned = _check_digest(self._intake.read_pin(self.claim), name)
        return found

    def pin_digest(self, name: str, digest: str) -> str:
        """Record that `name` means `digest` for the batch; return the digest that counts.

        Raises:
            ImageInvalid: Redis holds no digest there.
        """
        if self.batch:
            digest = self.pinned = _check_digest(
                self._intake.pin_image(self.claim, self.batch, name, digest), name, f" for batch {self.batch}"
            )
        return digest

    def _begin_wait(self, why: str, *, is_remote: bool) -> None:
        if not self.claim.is_waiting:
            if not self._intake.note_wait(self.claim):
                self._cancel.cancel(ErrorCode.WORKER_LOST, TAKEN_OVER)
                self._cancel.raise_if_set()
            self.claim = replace(self.claim, is_waiting=True, attempts=self.claim.attempts[:-1])
            extra = {"action": "job_waits", "job_id": self.claim.job_id}
            log.info("job %s waits for %s", self.claim.job_id, why, extra=extra)
        self._intake.held_claims.wait(self.claim, is_remote=is_remote)

    def _take_slot(self) -> None:
        """Wait until the job counts again in its worker, then for another slot and its memory."""
        with self._slots.wanting(self._intake.held_claims.find_memory(self.claim)):
            while not self._intake.held_claims.take_back_capacity(self.claim, CANCEL_POLL_SECONDS):
                self._cancel.raise_if_set()
            self._take_free_slot()

    def _take_free_slot(self) -> None:
        while True:
            try:
                slot = self._slots.acquire(self._cancel.open_fd())
            finally:
                self._cancel.close_fd()
            if slot is not None and self._intake.held_claims.set_slot(self.claim, slot):
                return
            self._refuse_if_never(self._slots.last_memory)
            self._cancel.wait(0 if slot is None else MEMORY_POLL_SECONDS)
            self._cancel.raise_if_set()

    def _refuse_if_never(self, memory: HostMemory | None) -> None:
        wanted = self._intake.held_claims.find_memory(self.claim)
        if memory is not None and wanted > memory.budget:
            raise HostResources.of(
                f"the job needs {format_bytes(wanted)} of memory, and all jobs of this host may use "
                f"{format_bytes(memory.budget)} by now"
            )


def _check_digest(digest: str, name: str, where: str = "") -> str:
    """Return `digest`, which Redis has for an image's `name`, or is empty; refuse what is none."""
    if not digest or is_digest(digest):
        return digest
    raise ImageInvalid.of(
        f"Redis says that image {name} is {digest[:100]!a}{where}, which is no digest: submit again, with another "
        "batch name, and find out who wrote that"
    )
