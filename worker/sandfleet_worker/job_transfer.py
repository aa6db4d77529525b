"""Hand one job its files, and take its output while it runs."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.process.packed_job import NO_TRANSFER

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.spec import SandboxSpec

    from sandfleet_worker.delivery.live_output import LiveOutput
    from sandfleet_worker.files.host_files import JobFiles
    from sandfleet_worker.host import Host
    from sandfleet_worker.job_start import JobStart
    from sandfleet_worker.sandbox.ending import Ending
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.outputs import KeepOutput
    from sandfleet_worker.sandbox.process.packed_job import Transfer


class JobTransfer:
    """The files and the live output of one job. Used in the job's thread; close it."""

    def __init__(self, host: Host, start: JobStart, cancel: Cancellation) -> None:
        self._host, self._start, self._cancel = host, start, cancel
        self._files: JobFiles | None = None
        self._live: LiveOutput | None = None
        self._asked: float | None = None
        self._found: float | None = None

    def source(self, spec: SandboxSpec) -> Callable[[], Transfer]:
        """Return what gives the job its files, to be called once its image is here.

        The search for the image begins now.
        """
        self._asked = time.monotonic()
        return partial(self._open, spec)

    def count_image_seconds(self) -> float | None:
        """Return how long it took to find or pull the image, or has taken by now; None: not begun."""
        if self._asked is None:
            return None
        return (self._found or time.monotonic()) - self._asked

    def _open(self, spec: SandboxSpec) -> Transfer:
        """Have the job's files here, and a way for its output; raises as `HostFiles.prepare`."""
        self._found = time.monotonic()
        self._files = self._host.files.prepare(spec, self._cancel, self._start)
        transfer = self._files.transfer if self._files else NO_TRANSFER
        if not spec.output.live:
            return transfer
        self._live = self._host.live.open(lambda: self._start.claim)
        return replace(transfer, keep_output=_join(self._live.keep, transfer.keep_output))

    def note_end(self, ending: Ending) -> None:
        """Note the files that were collected from the sandbox."""
        if self._files is not None:
            self._files.collection = ending.collection

    @property
    def has_files(self) -> bool:
        """Whether the job has files, or leaves some."""
        return self._files is not None

    def deliver(self, outcome: Outcome) -> Outcome:
        """Upload what the job left; return `outcome` with its places: see `JobFiles.deliver`."""
        return outcome if self._files is None else self._files.deliver(outcome)

    def close(self) -> None:
        """Send the rest of the output, and remove the job's files from this host's disk."""
        if self._live is not None:
            self._live.end()
        if self._files is not None:
            self._files.close()


def _join(first: KeepOutput, second: KeepOutput | None) -> KeepOutput:
    """Return what gives all output to both."""
    if second is None:
        return first

    def keep(name: str) -> Callable[[bytes], None]:
        takers = (first(name), second(name))

        def take(data: bytes) -> None:
            for taker in takers:
                taker(data)

        return take

    return keep
