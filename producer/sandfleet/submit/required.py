"""The store's objects that the jobs of one submit need: there before a job is queued."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import SpecInvalid
from sandfleet_config.wire import MAX_REPORTED_FAULTS

from sandfleet.files.reference import list_objects

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.files.objects import Objects
    from sandfleet.submit.contents import Contents

RENEWED_SECONDS: Final = 60.0
"""An object that a submit needs again so long after its check is checked, and kept, anew."""
MAX_KNOWN: Final = 100_000
"""Objects that one submit remembers as checked or sent; at more, it forgets them and asks again."""
MAX_PENDING_BYTES: Final = 64 << 20
"""Moved contents that wait for their upload."""


class RequiredObjects:
    """Uploads the moved `contents`, and checks each object in the store once, not once a job.

    The store then keeps each object for the job's `queue_ttl` and `result_ttl_seconds` together.
    """

    def __init__(self, contents: Contents, open_objects: Callable[[], Objects], result_ttl_seconds: float) -> None:
        self._contents = contents
        self._open_objects = open_objects
        self._result_ttl_seconds = result_ttl_seconds
        self._wanted: dict[str, tuple[float, str, str]] = {}
        """Seconds to keep it, the field and the file that name it first, by sha256."""
        self._kept_until: dict[str, float] = {}
        self._sent: set[str] = set()

    def add(self, spec: SandboxSpec, prefix: str = "") -> None:
        """Note the objects of `spec`; `prefix` is for its fields' names, such as ``specs[3].``.

        Raises:
            SpecTooLarge: the store takes no object of that size.
            FleetUnavailable: the store or Redis is down.
        """
        seconds = spec.queue_ttl + self._result_ttl_seconds + RENEWED_SECONDS
        until = time.monotonic() + seconds
        for sha256, size, field, name in list_objects(spec):
            if size:
                self._open_objects().check_size(size, name)
            if self._kept_until.get(sha256, 0.0) < until - RENEWED_SECONDS:
                known, *first = self._wanted.get(sha256, (0.0, f"{prefix}{field}.sha256", name))
                self._wanted[sha256] = (max(seconds, known), first[0], first[1])
        if self._contents.pending_bytes > MAX_PENDING_BYTES:
            self._upload()

    def _upload(self) -> None:
        pending = {ref: content for ref, content in self._contents.take().items() if ref.sha256 not in self._sent}
        if pending:
            self._open_objects().put_all({ref: content.to_bytes() for ref, content in pending.items()})
            self._sent.update(ref.sha256 for ref in pending)

    def send(self) -> None:
        """Upload and check what is new since the last call; without anything new, do nothing.

        Raises:
            SpecInvalid: the store lacks objects; ``errors`` names field and sha256 of each.
            FleetUnavailable: the store or Redis is down.
        """
        self._upload()
        if not self._wanted:
            return
        groups: defaultdict[float, list[str]] = defaultdict(list)
        for sha256, (seconds, _, _) in self._wanted.items():
            groups[seconds].append(sha256)
        missing: list[str] = []
        objects = self._open_objects()
        for seconds, names in groups.items():
            until = time.monotonic() + seconds
            missing += objects.find_missing(names, seconds)
            self._kept_until |= dict.fromkeys(names, until)
        if missing:
            raise self._refuse(missing, objects.place)
        self._wanted.clear()
        if len(self._kept_until) > MAX_KNOWN:
            self._kept_until.clear()
            self._sent.clear()

    def _refuse(self, missing: list[str], place: str) -> SpecInvalid:
        faults: list[dict[str, str]] = []
        for sha256 in missing[:MAX_REPORTED_FAULTS]:
            _, field, name = self._wanted[sha256]
            reason = f"{place} has no object {sha256}: it was never uploaded, or has expired; upload it again"
            faults.append({"field": field, "message": f"{name}: {reason}"})
        more = f"; and {len(missing) - len(faults)} more" if len(missing) > len(faults) else ""
        text = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
        self._wanted.clear()
        for sha256 in missing:
            self._kept_until.pop(sha256, None)
        return SpecInvalid.of(text + more, errors=faults)
