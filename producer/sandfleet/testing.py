"""A fleet in memory for your own tests: the API of `Fleet`, no Redis, no worker, no sandbox.

def handler(spec):
return SandboxResult(exit_code=0, stdout="42", stderr="", duration=0.1)

fleet = FakeFleet(handler)
assert my_code(fleet) == 42
assert fleet.specs[0].image == "python"
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from sandfleet_config.errors import Cancelled, ErrorCode, SandboxError
from sandfleet_config.outcome import Outcome, SandboxResult, StreamOutput
from sandfleet_config.settings import Settings
from sandfleet_config.wire import decode_job

from sandfleet.errors import JobExists, JobUnknown
from sandfleet.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel import JobRecord, Ticket

Ending: TypeAlias = Outcome | SandboxResult | SandboxError | None
"""How a scripted job ends; None leaves it queued, to be ended by `FakeFleet.finish` or by a cancel."""
Handler: TypeAlias = "Callable[[SandboxSpec], Ending]"


def _end_well(spec: SandboxSpec) -> Ending:  # noqa: ARG001  a handler
    return SandboxResult(exit_code=0, stdout="", stderr="", duration=0.0)


class FakeChannel:
    """Keeps jobs in memory; each is ended by the handler as it is submitted."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._lock = threading.Lock()
        self._tickets: dict[str, Ticket] = {}
        self._outcomes: dict[str, Outcome] = {}

    def publish(self, ticket: Ticket) -> None:
        """Run the handler on what a worker would read."""
        with self._lock:
            if ticket.job_id in self._tickets:
                raise JobExists(f"there is a job {ticket.job_id} already", [ticket.job_id])
            self._tickets[ticket.job_id] = ticket
        try:
            ending = self._handler(decode_job(ticket.text, len(ticket.text.encode())).spec)
        except SandboxError as error:
            ending = error
        self.finish(ticket.job_id, ending)

    def finish(self, job_id: str, ending: Ending) -> None:
        """Record the job's one outcome; the first stands."""
        with self._lock:
            if job_id not in self._tickets:
                raise JobUnknown(f"there is no job {job_id}", [job_id])
            if ending is not None and job_id not in self._outcomes:
                self._outcomes[job_id] = _new_outcome(self._tickets[job_id], ending)

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Return what was recorded."""
        with self._lock:
            return [self._outcomes.get(job_id) for job_id in job_ids]

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return what was left at submit."""
        with self._lock:
            found = [self._tickets.get(job_id) for job_id in job_ids]
        return [ticket.record if ticket else None for ticket in found]

    def cancel(self, job_id: str) -> None:
        """End the job as ``CANCELLED``."""
        self.finish(job_id, Cancelled.of("the job was cancelled"))

    def has_workers(self, timeout_seconds: float) -> bool:  # noqa: ARG002  as in `Channel`
        """Claim that there are."""
        return True

    def ping(self) -> None:
        """Return."""

    def close(self) -> None:
        """Keep everything: a `Fleet` may be used after its close, too."""

    def specs(self) -> list[SandboxSpec]:
        """Return the specs in the order of their submission."""
        with self._lock:
            return [ticket.request.spec for ticket in self._tickets.values()]

    def job_ids(self) -> list[str]:
        """Return the ids in the order of their submission."""
        with self._lock:
            return list(self._tickets)


class FakeFleet(Fleet):
    """A `Fleet` whose jobs end as `handler` says, at once: it gets each spec and returns or raises the ending.

    Without a handler each job exits 0 with no output. Specs are checked as the real fleet checks them.
    """

    def __init__(self, handler: Handler | None = None, *, settings: Settings | None = None) -> None:
        self._fake = FakeChannel(handler or _end_well)
        super().__init__(settings or Settings.model_construct(), channel=self._fake)

    @property
    def specs(self) -> list[SandboxSpec]:
        """Every spec that was submitted, in order."""
        return self._fake.specs()

    @property
    def job_ids(self) -> list[str]:
        """The id of every job that was submitted, in order."""
        return self._fake.job_ids()

    def finish(self, job_id: str, ending: Ending) -> None:
        """End a job that the handler left queued by returning None.

        Raises:
            JobUnknown: no such job was submitted.
        """
        self._fake.finish(job_id, ending)


def _new_outcome(ticket: Ticket, ending: Outcome | SandboxResult | SandboxError) -> Outcome:
    known: dict[str, Any] = {
        "batch": ticket.record.batch,
        "labels": ticket.request.spec.labels,
        "spec_sha256": ticket.record.spec_sha256,
    }
    match ending:
        case Outcome():
            return ending.model_copy(update={"job_id": ticket.job_id, **known})
        case SandboxError():
            if ending.outcome is not None:
                return ending.outcome.model_copy(update={"job_id": ticket.job_id, **known})
            return Outcome.of(ending.code, ticket.job_id, ending.message, **known)
        case _:
            return Outcome.of(
                ErrorCode.EXIT_NONZERO if ending.exit_code else ErrorCode.OK,
                ticket.job_id,
                exit_code=ending.exit_code,
                stdout=StreamOutput.of(ending.stdout.encode()),
                stderr=StreamOutput.of(ending.stderr.encode()),
                duration=ending.duration,
                **known,
            )
