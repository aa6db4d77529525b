"""Contract 5: jobs and batches that a job waits for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rows import each_row
from sandfleet_config.after import MAX_AFTER_BATCHES, MAX_AFTER_JOBS, AfterSpec
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.fingerprint import request_sha256, spec_sha256
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import JobRequest, decode_job, encode_job, new_spec


def spec_of(after: Any) -> SandboxSpec:
    return new_spec({"image": "x", "after": after})


def test_after_needs_contract_5() -> None:
    request = JobRequest(spec=spec_of({"jobs": ["one", "two"], "batches": ["prepare"]}), batch="b")
    text = encode_job(request)
    assert text == (
        '{"contract":5,"spec":{"image":"x","after":{"jobs":["one","two"],"batches":["prepare"]}},"batch":"b"}'
    )
    assert decode_job(text) == request
    with pytest.raises(SpecInvalid, match=r"after, retry_with, output\.live need contract version 5"):
        decode_job(json.dumps({"contract": 4, "spec": {"image": "x", "after": ["one"]}}))


def test_a_list_is_job_ids_each_once() -> None:
    assert spec_of(["one", "two", "one"]).after == AfterSpec(jobs=("one", "two"))
    assert not spec_of([]).after
    assert encode_job(JobRequest(spec=spec_of([]))) == '{"contract":1,"spec":{"image":"x"}}'


def test_what_runs_is_the_same_and_the_request_is_another() -> None:
    plain, waits = SandboxSpec(image="x"), spec_of({"batches": ["b"]})
    assert spec_sha256(waits) == spec_sha256(plain)
    assert request_sha256(waits) != request_sha256(plain)
    assert request_sha256(waits) != request_sha256(spec_of(["b"]))


@each_row(
    ("after", "told"),
    [
        ("prepare", "after: must be a list of job ids, or an object with jobs and batches"),
        (["no id"], "after.jobs.0: is no job id"),
        ({"batches": [""]}, "after.batches.0: must not be empty"),
        ({"batches": ["\x1b"]}, "after.batches.0: must not contain control characters"),
        ({"batch": "b"}, "after.batch: "),
        ({"jobs": [f"j{number}" for number in range(MAX_AFTER_JOBS + 1)]}, "after.jobs: "),
        ({"batches": [f"b{number}" for number in range(MAX_AFTER_BATCHES + 1)]}, "after.batches: "),
    ],
)
def test_a_faulty_after_is_refused_with_its_field(after: Any, told: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        spec_of(after)
    assert told in caught.value.message
