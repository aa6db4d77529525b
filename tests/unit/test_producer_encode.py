from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest
from rows import each_row
from sandfleet import SandboxSpec, SpecInvalid
from sandfleet.channel.message import new_messages
from sandfleet.channel.records import JobRecord
from sandfleet.submit import chunks
from sandfleet.submit.check import JobChecker, Spec
from sandfleet.submit.encode import EncodedRequest, JobEncoder, new_uuids
from sandfleet_config.fingerprint import request_sha256, spec_sha256
from sandfleet_config.wire import (
    JobRequest,
    decode_job,
    encode_job,
    encode_needs,
    join_needs,
)

FULL = SandboxSpec.model_validate(
    {
        "image": "im\u00e4ge",
        "command": ["sh", "-c", 'echo "\u20ac\\"'],
        "env": {"A": "1"},
        "labels": {"name": 'n "1"', "b": "\u20ac"},
        "timeout": 1.5,
        "priority": 3,
        "queue_ttl": 60.5,
        "max_attempts": 1,
        "retry_on": ["WORKER_LOST"],
        "requires": {"gpu": "yes", "arch": "x86_64"},
    }
)
SMALL = SandboxSpec(image="x")


@each_row("spec", [SMALL, FULL, FULL.model_copy(update={"idempotency_key": "own \u20ac"})])
@each_row("batch", [None, 'b "\u20ac"'])
@each_row("is_keyed", [False, True])
def test_an_encoded_job_is_what_the_models_encode(spec: SandboxSpec, batch: str | None, *, is_keyed: bool) -> None:
    checker = JobChecker(batch, is_keyed=is_keyed and batch is not None)
    encoder = JobEncoder(batch, 10_000)
    (job,) = encoder.name([encoder.encode(checker.check(spec, 7))])
    key = spec.idempotency_key or (f"{batch}/7" if is_keyed and batch else "")
    named = spec.model_copy(update={"idempotency_key": key})
    request = JobRequest(batch=batch, spec=named)
    assert decode_job(job.text) == request
    assert job.text == encode_job(request)
    assert job.spec_hash == spec_sha256(spec)
    assert job.fingerprint == (request_sha256(named) if key else job.tag)
    assert JobRecord.model_validate_json(job.encode_record()) == job.record
    assert job.needs == join_needs(request.contract, encode_needs(spec))
    message: dict[str, Any] = json.loads(new_messages([job], "q")[0])
    assert json.loads(base64.b64decode(message["body"]))[0] == [job.text]
    assert message["headers"]["argsrepr"] == spec.to_line() == job.record.line


class _Text(str):
    """A text as frameworks have it, such as Django's ``SafeString``."""

    __slots__ = ()


def test_names_may_be_instances_of_a_subclass_of_str() -> None:
    encoder = JobEncoder(_Text("b"), 10_000)
    (job,) = encoder.name([encoder.encode(JobChecker(_Text("b")).check(SMALL))], _Text("j1"))
    assert JobRecord.model_validate_json(job.encode_record()).batch == "b"
    message: dict[str, Any] = json.loads(new_messages([job], _Text("q"))[0])
    assert (message["headers"]["id"], message["properties"]["delivery_info"]["routing_key"]) == ("j1", "q")


def test_ids_are_random_uuids() -> None:
    ids = new_uuids(1000)
    assert len(set(ids)) == 1000
    assert {(uuid.UUID(text).version, uuid.UUID(text).variant) for text in ids} == {(4, uuid.RFC_4122)}
    assert [str(uuid.UUID(text)) for text in ids] == ids
    assert new_uuids(0) == []


def test_a_batch_name_that_is_not_allowed_is_refused_before_any_spec() -> None:
    with pytest.raises(SpecInvalid, match="batch"):
        JobChecker("\x1b[31m")


def test_a_spec_that_comes_again_is_encoded_once_unless_its_labels_changed() -> None:
    spec = SandboxSpec(image="x", labels={"name": "one"})
    checker, encoder = JobChecker("b"), JobEncoder("b", 10_000)
    first, again = encoder.encode(checker.check(spec)), encoder.encode(checker.check(spec))
    assert first.shared is again.shared
    spec.labels["name"] = "two"
    (job,) = encoder.name([encoder.encode(checker.check(spec))])
    assert job.spec_hash == spec_sha256(spec)
    assert job.text == encode_job(JobRequest(batch="b", spec=spec))
    assert job.line == "two: x"


@pytest.mark.parametrize("cached_bytes", [0, 3 * chunks.JOB_OVERHEAD_BYTES, 1 << 20])
def test_a_checked_list_is_cached_within_bounds_and_queued_in_its_order(
    cached_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CACHED_BYTES", cached_bytes)
    specs = [SandboxSpec(image=f"x{number}") for number in range(10)]
    checker, encoder = JobChecker("b", is_keyed=True), JobEncoder("b", 10_000)

    def encode(spec: Spec, index: int) -> EncodedRequest:
        return encoder.encode(checker.check(spec, index))

    cached = chunks.encode_all(encode, specs)
    assert len(cached) == {0: 0, 3 * chunks.JOB_OVERHEAD_BYTES: 2, 1 << 20: 10}[cached_bytes]
    (requests,) = chunks.split_specs(encode, specs, cached=cached)
    assert [(request.shared.spec, request.key) for request in requests] == [(specs[n], f"b/{n}") for n in range(10)]
    assert list(map(id, requests[: len(cached)])) == list(map(id, cached)), "cached requests are not encoded again"
