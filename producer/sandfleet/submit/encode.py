"""Encode checked jobs for the channel."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import msgspec
from sandfleet_config.contract import find_contract
from sandfleet_config.errors import SpecTooLarge
from sandfleet_config.fingerprint import request_sha256, spec_sha256
from sandfleet_config.queues import JOB_ID
from sandfleet_config.wire import (
    encode_needs,
    encode_run,
    join_job,
    join_needs,
)

from sandfleet.channel.records import EncodedJob
from sandfleet.submit.contents import Contents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.submit.check import CheckedJob
    from sandfleet.traces import SubmitTraces

UUID_BYTES: Final = 16
_EMPTY: Final[dict[str, str]] = {}
UNSHARED_BYTES: Final = 4096
"""Bytes of an encoded request that are kept free for its key, batch and delivery fields."""
_VARIANTS: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


class EncodedSpec(msgspec.Struct, frozen=True, gc=False):
    """The encoded parts that all jobs of one spec share.

    A large submit holds many of them, so the garbage collector does not follow them.

    `run` is `wire.encode_run` of the spec, `needs` is `wire.encode_needs`. `labels` and `requires`
    are copies: the caller may change those of the spec later. `source` is the spec as it was given;
    `spec` is the one that is sent, which has large contents in the store.
    """

    source: SandboxSpec
    spec: SandboxSpec
    labels: dict[str, str]
    requires: dict[str, str]
    run: str
    spec_hash: str
    line: str
    contract: int
    needs: str

    @classmethod
    def of(cls, spec: SandboxSpec, source: SandboxSpec | None = None, *, shows_whole: bool = False) -> EncodedSpec:
        """Encode `spec`; `shows_whole` as `JobEncoder` has it."""
        run = encode_run(spec)
        return cls(
            source or spec,
            spec,
            _copy(spec.labels),
            _copy(spec.requires),
            run,
            spec_sha256(spec, run),
            spec.to_line(is_whole=shows_whole),
            find_contract(spec),
            encode_needs(spec),
        )


def _copy(texts: dict[str, str]) -> dict[str, str]:
    """Copy a mapping; all empty ones are one object.

    A submit holds its encoded specs: each object more makes the garbage collector run more often.
    """
    return dict(texts) if texts else _EMPTY


class EncodedRequest(msgspec.Struct, frozen=True, gc=False):
    """One job without its id: `text` is the whole encoded request, `contract` its version."""

    shared: EncodedSpec
    key: str
    contract: int
    text: str


class JobEncoder:
    """Encodes the jobs of one submit; all of them belong to one batch, or to none."""

    def __init__(
        self,
        batch: str | None,
        max_spec_bytes: int,
        contents: Contents | None = None,
        *,
        least_contract: int = 1,
        shows_whole: bool = False,
        traces: SubmitTraces | None = None,
    ) -> None:
        """`contents` takes the contents that are too large to travel; its owner uploads them.

        `least_contract` is the version that workers must speak whatever the spec uses.
        `shows_whole`: records keep the whole command, without redaction. `traces` begins the trace
        of each job.
        """
        self._traces = traces
        self._shows_whole = shows_whole
        self._batch = batch
        self.max_spec_bytes = max_spec_bytes
        self._least_contract = least_contract
        self._contents = contents or Contents()
        self._last: EncodedSpec | None = None

    def encode(self, job: CheckedJob) -> EncodedRequest:
        """Encode a job.

        Raises:
            SpecTooLarge: it is larger than ``max_spec_bytes``.
        """
        spec, key = job
        shared = self._encode_spec(spec)
        try:
            return self._join(shared, key)
        except SpecTooLarge:
            excess = len(shared.run.encode()) + UNSHARED_BYTES - self.max_spec_bytes
            smaller = self._contents.shorten(shared.spec, excess)
            if smaller is shared.spec:
                raise
            self._last = shared = EncodedSpec.of(smaller, spec, shows_whole=self._shows_whole)
            return self._join(shared, key)

    def _join(self, shared: EncodedSpec, key: str) -> EncodedRequest:
        contract = max(2 if key else 1, shared.contract, self._least_contract)
        text = join_job(shared.run, shared.spec, key, self._batch, contract=contract, max_bytes=self.max_spec_bytes)
        return EncodedRequest(shared, key, contract, text)

    def _encode_spec(self, spec: SandboxSpec) -> EncodedSpec:
        """Encode a spec once if it comes several times in a row.

        Its dicts may have changed meanwhile.
        """
        last = self._last
        if last is None or last.source is not spec or last.labels != spec.labels or last.requires != spec.requires:
            sent = self._contents.move_large(spec) if spec.files else spec
            self._last = last = EncodedSpec.of(sent, spec, shows_whole=self._shows_whole)
        return last

    def name(self, requests: Sequence[EncodedRequest], job_id: str | None = None) -> list[EncodedJob]:
        """Give jobs their ids and the time of now; `job_id` is the id of a single job.

        Raises:
            ValueError: no job may have that id.
        """
        if job_id is not None and not JOB_ID.match(job_id):
            raise ValueError("a job id is 1 to 128 of A-Z a-z 0-9 . _ : @ - and starts with a letter or a digit")
        now = time.time()
        return [
            self._new_job(request, job_id or uuid, uuid, now)
            for request, uuid in zip(requests, new_uuids(len(requests)), strict=True)
        ]

    def _new_job(self, request: EncodedRequest, job_id: str, tag: str, now: float) -> EncodedJob:
        shared, key = request.shared, request.key
        # Without a key, only a repeated send of this very message is the same job: the tag
        # identifies it.
        fingerprint = request_sha256(shared.spec, shared.spec_hash, key) if key else tag
        return EncodedJob(
            job_id,
            shared.spec,
            self._batch,
            key,
            request.text,
            shared.spec_hash,
            fingerprint,
            tag,
            shared.line,
            now,
            join_needs(request.contract, shared.needs),
            self._traces.begin(job_id, self._batch) if self._traces else "",
        )


def new_uuids(count: int) -> list[str]:
    """Return random UUIDs (version 4), all from one read of random bytes.

    No state that a fork would copy.
    """
    drawn = os.urandom(UUID_BYTES * count).hex()
    parts = (drawn[at : at + 2 * UUID_BYTES] for at in range(0, len(drawn), 2 * UUID_BYTES))
    return [f"{x[:8]}-{x[8:12]}-4{x[13:16]}-{_VARIANTS[x[16]]}{x[17:20]}-{x[20:]}" for x in parts]
