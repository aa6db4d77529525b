"""From a spec to a job that is ready to be queued: checked, encoded, named."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from pydantic import ValidationError
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.queues import JOB_ID
from sandfleet_config.spec import MAX_KEY_CHARS, SandboxSpec
from sandfleet_config.wire import (
    JobRequest,
    encode_needs,
    encode_run,
    find_contract,
    join_job,
    join_needs,
    new_spec,
    raise_faults,
    request_sha256,
    spec_sha256,
)
from sandfleet_config.words import format_bytes

from sandfleet.channel.records import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Spec: TypeAlias = SandboxSpec | Mapping[str, Any]
UUID_BYTES: Final = 16
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_encode: Final = json.JSONEncoder().encode
_any_spec: Final = SandboxSpec(image="-")


class Encoded(NamedTuple):
    """The encoded part that all jobs of one spec share: `run` says what runs, `labels` and `requires` are as they were then.

    `needs` says what its host must have: see `wire.encode_needs`.
    """

    spec: SandboxSpec
    labels: dict[str, str]
    run: str
    spec_hash: str
    line: str
    contract: int
    requires: dict[str, str]
    needs: str

    @classmethod
    def of(cls, spec: SandboxSpec) -> Encoded:
        """Encode `spec`."""
        run = encode_run(spec)
        return cls(
            spec,
            dict(spec.labels),
            run,
            spec_sha256(spec, run),
            spec.to_line(),
            find_contract(spec),
            dict(spec.requires),
            encode_needs(spec),
        )


class Draft(NamedTuple):
    """A job that may be queued as far as the contract goes: `text` is the whole encoded request."""

    encoded: Encoded
    key: str
    text: str


class Desk:
    """Turns the specs of one submit into tickets; all of them belong to one batch, or to none."""

    def __init__(
        self,
        batch: str | None,
        max_spec_bytes: int,
        *,
        is_keyed: bool = False,
        find_largest_budget: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Check the batch's name; `is_keyed` gives each spec without an idempotency key one of the batch and its index.

        `find_largest_budget` says how much memory a job may have at most, if that is known; asked where a spec names its memory.

        Raises:
            SpecInvalid: no batch may have that name.
            ValueError: keys are wanted, and there is no batch to name them after.
        """
        if is_keyed and not batch:
            raise ValueError("an idempotent submit needs the name of a batch: its jobs' keys begin with it")
        try:
            JobRequest(batch=batch, spec=_any_spec)
        except ValidationError as error:
            raise_faults(error, JobRequest)
        self.batch = batch
        self._max_spec_bytes = max_spec_bytes
        self._is_keyed = is_keyed
        self._find_largest_budget = find_largest_budget
        self._last = Encoded.of(_any_spec)

    def new_draft(self, spec: Spec, index: int = 0) -> Draft:
        """Check and encode a spec.

        Raises:
            SandboxError: `SpecInvalid`, `SpecTooLarge` or `SecurityViolation`, with every fault.
        """
        parsed = spec if isinstance(spec, SandboxSpec) else new_spec(spec)
        key = parsed.idempotency_key
        if self._is_keyed and not key:
            key = f"{self.batch}/{index}"
            if len(key) > MAX_KEY_CHARS or not key.isprintable():
                new_spec({**dict(parsed), "idempotency_key": key})  # refuses it in its own words
        encoded = self._encode(parsed)
        contract = max(2, encoded.contract) if key else encoded.contract
        text = join_job(encoded.run, parsed, key, self.batch, contract=contract, max_bytes=self._max_spec_bytes)
        return Draft(encoded, key, text)

    def _encode(self, spec: SandboxSpec) -> Encoded:
        """Encode a spec, the same one several times in a row only once; its labels, a dict, may have changed meanwhile."""
        last = self._last
        if last.spec is not spec or last.labels != spec.labels or last.requires != spec.requires:
            self._refuse_too_large(spec.resources.memory_bytes)
            self._last = last = Encoded.of(spec)
        return last

    def _refuse_too_large(self, memory_bytes: int) -> None:
        """Refuse a job that fits on no live host: it would wait until it expires."""
        if memory_bytes and (largest := self._find_largest_budget()) is not None and memory_bytes > largest:
            asked, most = format_bytes(memory_bytes), format_bytes(largest)
            message = f"{asked} is more than any live host has for its jobs: the largest has {most}"
            fault = {"field": "resources.memory_bytes", "message": message}
            raise SpecInvalid.of(f"{fault['field']}: {message}", errors=[fault])

    def issue(self, drafts: Sequence[Draft], job_id: str | None = None) -> list[Ticket]:
        """Name the jobs, all of them now; `job_id` is the name of the one there is.

        Raises:
            ValueError: no job may have that id.
        """
        if job_id is not None and not JOB_ID.match(job_id):
            raise ValueError("a job id is 1 to 128 of A-Z a-z 0-9 . _ : @ - and starts with a letter or a digit")
        now = time.time()
        return [
            self._new_ticket(draft, job_id, tag, now) for draft, tag in zip(drafts, draw_ids(len(drafts)), strict=True)
        ]

    def _new_ticket(self, draft: Draft, job_id: str | None, tag: str, now: float) -> Ticket:
        (spec, _, _, spec_hash, line, contract, _, needs), key, text = draft
        # Without a key nothing but this very ticket is the same job: a repeated call finds it by its id, another's id is taken.
        fingerprint = request_sha256(spec, spec_hash, key) if key else tag
        needs = join_needs(max(2, contract) if key else contract, needs)
        return Ticket(job_id or tag, spec, self.batch, key, text, spec_hash, fingerprint, tag, line, now, needs)


def draw_ids(count: int) -> list[str]:
    """Return random ids (UUID, version 4), drawn all at once: nothing is kept that a fork would copy."""
    drawn = os.urandom(UUID_BYTES * count).hex()
    parts = (drawn[at : at + 2 * UUID_BYTES] for at in range(0, len(drawn), 2 * UUID_BYTES))
    return [f"{x[:8]}-{x[8:12]}-4{x[13:16]}-{_VARIANTS[x[16]]}{x[17:20]}-{x[20:]}" for x in parts]
