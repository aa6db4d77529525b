"""`FakeFleet`: a `Fleet` in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sandfleet_config.files import FileSpec
from sandfleet_config.outcome import SandboxResult
from sandfleet_config.settings import Settings

from sandfleet.fleet import Fleet
from sandfleet.testing.fake_channel import FakeChannel
from sandfleet.testing.fake_job import Ending, Handler, WithArtifacts

if TYPE_CHECKING:
    from sandfleet_config.spec import Payload, SandboxSpec

    from sandfleet.testing.fake_store import FakeStore
    from sandfleet.testing.fake_webhooks import Webhook

__all__ = ["Ending", "FakeChannel", "FakeFleet", "Handler", "WithArtifacts"]


def _end_well(spec: SandboxSpec) -> Ending:  # noqa: ARG001  a handler
    return SandboxResult(exit_code=0, stdout="", stderr="", duration=0.0)


class FakeFleet(Fleet):
    """A `Fleet` in memory: `handler` gets each spec, and returns or raises how the job ends.

    Without a handler each job exits 0 with no output. Specs are checked as the real fleet checks
    them. A code of the spec's ``retry_on`` calls the handler again, up to ``max_attempts`` times;
    then the job is a dead letter. Uploads go to a store in memory; a handler returns
    `WithArtifacts` to leave files.
    """

    def __init__(self, handler: Handler | None = None, *, settings: Settings | None = None) -> None:
        known = settings or Settings.model_construct()
        self._fake = FakeChannel(handler or _end_well, known.max_queued)
        super().__init__(known, channel=self._fake)

    @property
    def fake_channel(self) -> FakeChannel:
        """The transport in memory; ``Fleet(settings, channel=...)`` with it has the same jobs."""
        return self._fake

    @property
    def handler(self) -> Handler:
        """The function that says how the jobs end that are submitted from now on."""
        return self._fake.handler

    @handler.setter
    def handler(self, handler: Handler) -> None:
        self._fake.handler = handler

    @property
    def store(self) -> FakeStore:
        """The store in memory that uploads and artifacts go to."""
        return self._fake.store

    def read_input(self, source: FileSpec | Payload) -> bytes:
        """Return the bytes of a spec's file or stdin, from the spec or the store; for handlers.

        Raises:
            ObjectMissing: the store does not have them.
        """
        if source.sha256 is not None:
            return self.store.get(source.sha256)
        content = source.content if isinstance(source, FileSpec) else source
        return content.to_bytes() if content is not None else b""

    @property
    def webhooks(self) -> list[Webhook]:
        """The webhooks that a sender would have sent (`on_done`), in order."""
        return list(self._fake.webhooks.sent)

    @property
    def specs(self) -> list[SandboxSpec]:
        """Every spec that was submitted, in order."""
        return self._fake.specs()

    @property
    def job_ids(self) -> list[str]:
        """The id of every job that was submitted, in order."""
        return self._fake.job_ids()

    def write_output(self, job_id: str, data: bytes, stream: Literal["stdout", "stderr"] = "stdout") -> None:
        """Let a job that the handler left queued write, as far as its spec says `output.live`.

        Its end adds what its outcome has beyond that.

        Raises:
            JobUnknown: no such job was submitted.
        """
        self._fake.live.write(job_id, stream, data)

    def finish(self, job_id: str, ending: Ending) -> None:
        """End a job that the handler left queued by returning None.

        Raises:
            JobUnknown: no such job was submitted.
        """
        self._fake.finish(job_id, ending)
