"""Change the specs of jobs that run again: ``timeout=60``, ``resources.memory_bytes=1GiB``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from sandfleet_config.contract import BATCH_CONTRACT
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.scripts import step_of
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import new_spec

from sandfleet.submit.check import JobChecker
from sandfleet.submit.contents import Contents
from sandfleet.submit.encode import JobEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.records import EncodedJob
    from sandfleet.files.objects import Objects

UNCHANGEABLE: Final = ("idempotency_key", "after")
TEXT_FIELDS: Final = ("image", "labels", "requires", "platform", "working_dir")
"""Fields whose values are text, also if they look like a number."""


def parse_changes(words: Sequence[str]) -> dict[str, object]:
    """Parse ``field=value`` words; a field of a part is written ``resources.memory_bytes``.

    A value is JSON if it can be read as JSON, else text: a size such as ``1GiB``. The fields are
    checked when a job is changed, by the spec's own model.

    Raises:
        ValueError: a word is not of that form, or its field cannot be changed.
    """
    found: dict[str, object] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise ValueError(f"{ascii(word)[1:-1]} must be field=value, such as timeout=60")
        if name.partition(".")[0] in UNCHANGEABLE:
            raise ValueError(f"{name} cannot be changed: the job keeps that of its first run")
        found[name] = value if name.partition(".")[0] in TEXT_FIELDS else _parse_value(value)
    return found


def _parse_value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def change_spec(spec: SandboxSpec, changes: Mapping[str, object]) -> SandboxSpec:
    """Return `spec` with other values of fields; names as `parse_changes` returns them.

    Raises:
        SpecInvalid: no spec may be so; `errors` has every fault.
        SecurityViolation: it asks for what no job may have.
    """
    if not changes:
        return spec
    fields: dict[str, Any] = json.loads(spec.model_dump_json(exclude_defaults=True))
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = fields
        for parent in parents:
            found = place.setdefault(parent, {})
            if not isinstance(found, dict):
                fault = {"field": name, "message": f"{parent} has no fields of its own"}
                raise SpecInvalid.of(f"{name}: {fault['message']}", errors=[fault])
            place = cast("dict[str, Any]", found)
        place[last] = value
    return new_spec(fields)


def keep_delivery(spec: SandboxSpec, job: JobFacts) -> SandboxSpec:
    """Return `spec` with the priority, `queue_ttl` and `max_attempts` of the job's record.

    A line of a file of jobs need not have them: options of its submit may have said them.
    """
    changes: dict[str, object] = {}
    if step_of(spec.priority) != job.step:
        changes["priority"] = job.step
    if job.queue_ttl:
        changes["queue_ttl"] = job.queue_ttl
    if job.max_attempts:
        changes["max_attempts"] = job.max_attempts
    return spec.model_copy(update=changes)


class JobChanger:
    """Encodes jobs of one batch again, changed; uploads their contents that are too large to travel."""

    def __init__(
        self,
        batch: str,
        changes: Mapping[str, object],
        max_spec_bytes: int,
        find_largest_budget: Callable[[], int | None],
        open_objects: Callable[[], Objects],
    ) -> None:
        self._batch = batch
        self._max_spec_bytes = max_spec_bytes
        self._changes = dict(changes)
        self._contents = Contents()
        self._checker = JobChecker(batch, find_largest_budget=find_largest_budget)
        self._open_objects = open_objects

    def check(self, job: JobFacts, spec: SandboxSpec) -> None:
        """Return if the job can run as it shall; raises as `encode`."""
        self.encode(job, spec)
        for ref in self._contents.take():
            self._open_objects().check_size(ref.size, "a content")

    def encode(self, job: JobFacts, spec: SandboxSpec) -> EncodedJob:
        """Return the job as it shall run; call `upload` before it is queued.

        Raises:
            SpecInvalid, SecurityViolation, SpecTooLarge: it cannot run so.
        """
        checked = self._checker.check(change_spec(spec, self._changes))
        encoder = JobEncoder(
            self._batch,
            self._max_spec_bytes,
            self._contents,
            least_contract=_read_contract(job),
            shows_whole=_shows_whole(job, spec),
        )
        return encoder.name([encoder.encode(checked)], job.job_id)[0]

    def upload(self) -> None:
        """Upload the contents of the encoded jobs that the store lacks.

        Raises:
            FleetUnavailable: the store is down or full.
        """
        contents = self._contents.take()
        if contents:
            self._open_objects().put_all({ref: content.to_bytes() for ref, content in contents.items()})


def _read_contract(job: JobFacts) -> int:
    """Return the contract version that the job's batch may need by its limits, as its record says."""
    version: object = job.needs.get("contract")
    return min(version, BATCH_CONTRACT) if isinstance(version, int) else 1


def _shows_whole(job: JobFacts, spec: SandboxSpec) -> bool:
    """Whether the record of a job with `spec` shows its command with what looks secret."""
    return job.line != spec.to_line() and job.line == spec.to_line(is_whole=True)
