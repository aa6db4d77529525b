"""Contract 4: files, datasets, artifacts and objects of the store in a spec."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest
from rows import each_row
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.files import MAX_ARTIFACT_PATTERNS, MAX_FILES, Payload
from sandfleet_config.fingerprint import request_sha256, spec_sha256
from sandfleet_config.spec import RETRIED_CODES, SandboxSpec
from sandfleet_config.wire import JobRequest, decode_job, encode_job, new_spec

DIGEST = "ab" * 32
EARLIER_SPEC = "c1ac1805ac98e003082b3a7124c52f251472b7ff8e3db435aece43b8a70c4e72"
EARLIER_REQUEST = "0d45aacfd21aa3755243be1bc299fd7136b967fe956b29700b762ac16e0d508c"
NEWER: list[dict[str, Any]] = [
    {"files": [{"path": "a", "content": "x"}]},
    {"files": [{"path": "a", "sha256": DIGEST}]},
    {"datasets": [{"name": "corpus"}]},
    {"artifacts": ["out/*.png"]},
    {"stdin": {"sha256": DIGEST}},
    {"output": {"store": True}},
    {"image": "docker://python:3.13-slim"},
    {"retry_on": ["STORE_UNAVAILABLE"]},
]


def spec_of(**fields: Any) -> SandboxSpec:
    return new_spec({"image": "x", **fields})


def faults_of(**fields: Any) -> str:
    with pytest.raises(SpecInvalid) as caught:
        spec_of(**fields)
    return caught.value.message


@each_row("fields", NEWER)
def test_each_new_field_needs_contract_4(fields: dict[str, Any]) -> None:
    request = JobRequest(spec=spec_of(**fields), batch="b")
    assert json.loads(encode_job(request))["contract"] == request.contract == 4
    assert decode_job(encode_job(request)) == request
    with pytest.raises(SpecInvalid, match="need contract version 4"):
        decode_job(json.dumps({"contract": 3, "spec": {"image": "x", **fields}}))


@each_row(
    ("typed", "path"),
    [("a", "/work/a"), ("./a//b", "/work/a/b"), ("/tmp/x", "/tmp/x"), ("//tmp/x", "/tmp/x"), ("/work/a", "/work/a")],
)
def test_a_relative_path_begins_in_work(typed: str, path: str) -> None:
    assert spec_of(files=[{"path": typed, "content": ""}]).files[0].path == path


@each_row(
    ("files", "why"),
    [
        ([{"path": "../a", "content": ""}], r"files.0.path: must not contain \.\."),
        ([{"path": "a/../b", "content": ""}], r"files.0.path: must not contain \.\."),
        ([{"path": "a/", "content": ""}], "must be the path of a file"),
        ([{"path": "", "content": ""}], "must be the path of a file"),
        ([{"path": ".", "content": ""}], "must be the path of a file"),
        ([{"path": "/tmp/.", "content": ""}], "must be the path of a file"),
        ([{"path": "a/" + "é" * 128, "content": ""}], "a name of more than 255 bytes"),
        ([{"path": "a\0", "content": ""}], "must not contain a NUL character"),
        ([{"path": "a" * 5000, "content": ""}], "a path can be no longer"),
        ([{"path": "a"}], "give the file's content, or the sha256"),
        ([{"path": "a", "content": "", "sha256": DIGEST}], "give the file's content, or the sha256"),
        ([{"path": "a", "sha256": "AB"}], "sha256"),
        ([{"path": "a", "content": "", "mode": 644}], "octal mode"),
        ([{"path": "a", "content": "", "mode": "4755"}], "octal mode"),
        ([{"path": "a", "content": "", "mode": True}], "octal mode"),
        ([{"path": "a", "content": ""}, {"path": "/work/a", "content": ""}], "two files have the same path: /work/a$"),
        ([{"path": "a", "content": ""}, {"path": "a/b", "content": ""}], "the folder of another: /work/a$"),
        ([{"path": str(number), "content": ""} for number in range(MAX_FILES + 1)], f"the limit is {MAX_FILES}"),
        ("a", "must be a list"),
    ],
)
def test_a_faulty_file_is_refused(files: Any, why: str) -> None:
    assert re.search(why, faults_of(files=files))


@each_row(("typed", "mode"), [("755", "0755"), ("0755", "0755"), (0o755, "0755"), ("0o600", "0600"), (0, "0000")])
def test_a_mode_is_octal(typed: Any, mode: str) -> None:
    assert spec_of(files=[{"path": "a", "content": "", "mode": typed}]).files[0].mode == mode


def test_a_mode_that_is_a_number_in_json_is_refused() -> None:
    """It is decimal: 444 would be 0674."""
    text = json.dumps({"contract": 4, "spec": {"image": "x", "files": [{"path": "a", "content": "", "mode": 444}]}})
    with pytest.raises(SpecInvalid, match=r"files\.0\.mode: must be an octal mode"):
        decode_job(text)


def test_the_fingerprint_is_the_same_in_the_spec_and_in_the_store() -> None:
    data = b"\x00some bytes"
    stored = {"path": "/work/a", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "mode": "644"}
    other = {"path": "b", "content": "x"}
    one = spec_of(files=[{"path": "a", "content": data}, other])
    two = spec_of(files=[other, stored])
    assert spec_sha256(one) == spec_sha256(two)
    assert request_sha256(one) == request_sha256(two)
    different = [{**stored, **change} for change in ({"path": "c"}, {"mode": "0600"}, {"sha256": DIGEST})]
    assert len({spec_sha256(spec_of(files=[other, file])) for file in (stored, *different)}) == 4
    read = decode_job(encode_job(JobRequest(spec=one))).spec
    assert spec_sha256(read) == spec_sha256(one)


def test_the_size_of_stdin_does_not_change_the_fingerprint() -> None:
    one, two = spec_of(stdin={"sha256": DIGEST}), spec_of(stdin={"sha256": DIGEST, "size": 5})
    assert spec_sha256(one) == spec_sha256(two) != spec_sha256(spec_of())
    assert "data and sha256" in faults_of(stdin={"sha256": DIGEST, "data": "x"})
    assert spec_of(stdin=Payload(data="x")).stdin.to_bytes() == b"x"


def test_a_fingerprint_of_an_earlier_release_stays_valid() -> None:
    """These are of d4b93e5: the same idempotency key must not conflict after an upgrade."""
    spec = SandboxSpec(image="x", command=("a",), idempotency_key="k")
    assert spec.retry_on == RETRIED_CODES
    assert ErrorCode.STORE_UNAVAILABLE in spec.retry_on
    assert spec_sha256(spec) == EARLIER_SPEC
    assert request_sha256(spec) == EARLIER_REQUEST


@each_row(
    ("artifact", "glob", "when"),
    [
        ("out/**/*.png", "/work/out/**/*.png", "always"),
        ("out/", "/work/out/**", "always"),
        ({"glob": "/work/a", "when": "ok", "max_bytes": "1MiB"}, "/work/a", "ok"),
    ],
)
def test_an_artifact_is_a_pattern_below_work(artifact: Any, glob: str, when: str) -> None:
    found = spec_of(artifacts=[artifact]).artifacts[0]
    assert (found.glob, found.when) == (glob, when)


@each_row(
    ("artifacts", "why"),
    [
        (["/tmp/a"], "collected from /work only"),
        (["/work"], "collected from /work only"),
        (["../a"], "must not contain .."),
        ([{"glob": "a", "when": "never"}], "must be 'always', 'ok' or 'failed'"),
        (["a"] * (MAX_ARTIFACT_PATTERNS + 1), f"the limit is {MAX_ARTIFACT_PATTERNS}"),
        ("a", "must be a list"),
    ],
)
def test_a_faulty_artifact_is_refused(artifacts: Any, why: str) -> None:
    assert why in faults_of(artifacts=artifacts)


def test_a_dataset_lies_right_under_data() -> None:
    assert spec_of(datasets=[{"name": "corpus"}]).datasets[0].mount_path == "/data/corpus"
    assert spec_of(datasets=[{"sha256": DIGEST, "path": "/data/x"}]).datasets[0].mount_path == "/data/x"
    for faulty, why in (
        ({}, "name, or its sha256"),
        ({"sha256": DIGEST}, "right under /data"),
        ({"name": "a", "path": "/data/a/b"}, "right under /data"),
        ({"name": "a", "path": "/etc"}, "right under /data"),
        ({"name": "A/b"}, "lower-case"),
    ):
        assert why in faults_of(datasets=[faulty])
    assert "same path" in faults_of(datasets=[{"name": "a"}, {"name": "b", "path": "/data/a"}])
