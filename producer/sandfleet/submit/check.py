"""Check that a spec may be queued, before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from pydantic import ValidationError
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.spec import MAX_KEY_CHARS, SandboxSpec
from sandfleet_config.units import format_bytes
from sandfleet_config.wire import JobRequest, new_spec, raise_faults

if TYPE_CHECKING:
    from collections.abc import Callable

Spec: TypeAlias = SandboxSpec | Mapping[str, Any]
_any_spec: Final = SandboxSpec(image="-")


class CheckedJob(NamedTuple):
    """A spec that the contract allows, and the job's idempotency key, which may not be in it."""

    spec: SandboxSpec
    key: str


class JobChecker:
    """Checks the specs of one submit."""

    def __init__(
        self,
        batch: str | None,
        *,
        is_keyed: bool = False,
        find_largest_budget: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Check the batch's name.

        `is_keyed` gives each spec without an idempotency key the key ``<batch>/<index>``.
        `find_largest_budget` returns the most memory in bytes that a job may have, None if unknown.
        It is called for specs that name their memory.

        Raises:
            SpecInvalid: no batch may have that name.
            ValueError: `is_keyed` without a batch.
        """
        if is_keyed and not batch:
            raise ValueError("an idempotent submit needs the name of a batch: its jobs' keys begin with it")
        try:
            JobRequest(batch=batch, spec=_any_spec)
        except ValidationError as error:
            raise_faults(error, JobRequest)
        self._batch = batch
        self._is_keyed = is_keyed
        self._find_largest_budget = find_largest_budget

    def check(self, spec: Spec, index: int = 0) -> CheckedJob:
        """Check `spec`, the one at `index` of the submit.

        Raises:
            SandboxError: `SpecInvalid` or `SecurityViolation`, with every fault.
        """
        parsed = spec if isinstance(spec, SandboxSpec) else new_spec(spec)
        key = parsed.idempotency_key
        if self._is_keyed and not key:
            key = f"{self._batch}/{index}"
            if len(key) > MAX_KEY_CHARS or not key.isprintable():
                new_spec({**dict(parsed), "idempotency_key": key})  # raises the contract's own error
        if memory_bytes := parsed.resources.memory_bytes:
            self._check_memory("resources.memory_bytes", memory_bytes)
        if memory_bytes := parsed.retry_with.memory_bytes:
            self._check_memory("retry_with.memory_bytes", memory_bytes)
        if self._batch is not None and self._batch in parsed.after.batches:
            message = f"a job of batch {self._batch} cannot wait for its own batch"
            raise SpecInvalid.of(f"after.batches: {message}", errors=[{"field": "after.batches", "message": message}])
        return CheckedJob(parsed, key)

    def _check_memory(self, field: str, memory_bytes: int) -> None:
        """Refuse a job that fits on no live host: it would wait until it expires."""
        if (largest := self._find_largest_budget()) is not None and memory_bytes > largest:
            asked, most = format_bytes(memory_bytes), format_bytes(largest)
            message = f"{asked} is more than any live host has for its jobs: the largest has {most}"
            fault = {"field": field, "message": message}
            raise SpecInvalid.of(f"{fault['field']}: {message}", errors=[fault])
