"""The report of a worker with each beat: the state of its host, and the jobs that it has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sandfleet_worker.delivery.host_mark import HostMark

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandfleet_worker.delivery.held_claims import HeldClaims

MAX_STATUS_BYTES = 2000
"""A status has 2 KB in Redis, with the time that beat.lua adds."""
MAX_JOBS = 256
MAX_IMAGES = 200
LEFT_OUT_FIRST = ("labels", "queues", "warm", "prepared", "unenforced")
"""Parts that grow with the settings; readers take labels and queues from `hosts`, too."""


ImageUse: TypeAlias = tuple[str, str, int, float]
"""An image: name, digest, bytes, last use in unix time."""


class Measured(NamedTuple):
    """How the host is: fields of its status, and its images."""

    status: Mapping[str, object]
    images: tuple[ImageUse, ...] = ()


class HostReport:
    """The report of one worker.

    Its parts that may take long, since they read files, are measured in the announcer's thread. The
    lease's thread only adds what is known. `mark` is what operators want of the host.
    """

    def __init__(self, measure: Callable[[], Measured], held_claims: HeldClaims) -> None:
        self._measure, self._held_claims = measure, held_claims
        self._measured = Measured({})
        self.mark = HostMark(held_claims)

    def measure(self) -> Measured:
        """Measure what the next reports say, and return it."""
        self._measured = self._measure()
        return self._measured

    @property
    def images(self) -> tuple[ImageUse, ...]:
        """The images of the host as they were measured last."""
        return self._measured.images

    def encode_status(self, *, is_stopping: bool = False) -> str:
        """Return the status as JSON; without its largest parts where it would be too long."""
        state = "stopping" if is_stopping else self.mark.state
        waiting = len(self._held_claims.waiting_job_ids())
        running = max(0, len(self._held_claims.running_job_ids()) - waiting)
        fields = {**self._measured.status, "state": state, "running": running, "waiting": waiting}
        for name in (*LEFT_OUT_FIRST, ""):
            text = json.dumps(fields, separators=(",", ":"))
            if len(text) <= MAX_STATUS_BYTES:
                return text
            fields.pop(name, None)
        return "{}"

    def encode_jobs(self) -> str:
        """Return the jobs as JSON: [id, slot (-1: none), start in unix time (0: it waits)]."""
        jobs = self._held_claims.running_jobs()[:MAX_JOBS]
        return json.dumps(jobs, separators=(",", ":")) if jobs else ""


def encode_images(images: tuple[ImageUse, ...]) -> str:
    """Return images as JSON, those that were used last if there are too many."""
    kept = sorted(images, key=lambda image: -image[3])[:MAX_IMAGES]
    return json.dumps(sorted(kept), separators=(",", ":"))
