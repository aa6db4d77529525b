"""`FakeFleet`: a `Fleet` in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.outcome import SandboxResult
from sandfleet_config.settings import Settings

from sandfleet.fleet import Fleet
from sandfleet.testing.fake_channel import Ending, FakeChannel, Handler

if TYPE_CHECKING:
    from sandfleet_config.spec import SandboxSpec

__all__ = ["Ending", "FakeChannel", "FakeFleet", "Handler"]


def _end_well(spec: SandboxSpec) -> Ending:  # noqa: ARG001  a handler
    return SandboxResult(exit_code=0, stdout="", stderr="", duration=0.0)


class FakeFleet(Fleet):
    """A `Fleet` in memory: `handler` is called with each spec, and returns or raises how the job ends.

    Without a handler each job exits 0 with no output. Specs are checked as the real fleet checks
    them. A code of the spec's ``retry_on`` calls the handler again, up to ``max_attempts`` times;
    then the job is a dead letter.
    """

    def __init__(self, handler: Handler | None = None, *, settings: Settings | None = None) -> None:
        known = settings or Settings.model_construct()
        self._fake = FakeChannel(handler or _end_well, known.max_queued)
        super().__init__(known, channel=self._fake)

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
