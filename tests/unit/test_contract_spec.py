from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from rows import each_row
from sandfleet_config.bounds import MAX_LABELS
from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.errors import SecurityViolation, SpecInvalid, SpecTooLarge
from sandfleet_config.fingerprint import request_sha256, spec_sha256
from sandfleet_config.spec import Payload, SandboxSpec
from sandfleet_config.wire import (
    JobRequest,
    decode_job,
    encode_job,
    encode_needs,
    join_needs,
    new_spec,
)

FULL: dict[str, Any] = {
    "image": "python",
    "command": ["python3", "-c", "print(1)"],
    "working_dir": "/tmp",
    "env": {"A": "1", "B": "x=y"},
    "resources": {"memory_bytes": "256MiB", "cpu_quota": 50000, "pids_limit": 32, "disk_bytes": "1MiB"},
    "security": {"user": "nobody:nogroup", "read_only_rootfs": False, "network_mode": "none"},
    "timeout": 2.5,
    "grace": 0,
    "labels": {"name": "first", "kind": "test"},
    "stdin": b"\x00\xff\xfe",
    "output": {"max_bytes": "1KiB", "keep": "both", "on_limit": "kill"},
}

NEWER: dict[str, Any] = {
    "idempotency_key": "k/1",
    "priority": 0,
    "queue_ttl": 60.5,
    "max_attempts": 1,
    "retry_on": ["WORKER_LOST", "EXIT_NONZERO"],
}
"""The fields of contract 2."""


def test_a_spec_with_every_field_is_decoded_as_it_was() -> None:
    request = JobRequest(batch="nightly", spec=new_spec(FULL))
    text = encode_job(request)
    assert decode_job(text) == request
    assert json.loads(text)["contract"] == 1
    assert decode_job(text).spec.stdin.to_bytes() == b"\x00\xff\xfe"
    assert decode_job(text).spec.resources.memory_bytes == 256 << 20
    assert decode_job(text).spec.env == ("A=1", "B=x=y")


def test_the_smallest_spec_is_decoded_as_it_was_and_is_short() -> None:
    request = JobRequest(spec=SandboxSpec(image="x"))
    assert encode_job(request) == '{"contract":1,"spec":{"image":"x"}}'
    assert decode_job(encode_job(request)) == request


def test_the_fingerprint_does_not_depend_on_spelling() -> None:
    one = new_spec(
        {"image": "x", "env": {"A": "1"}, "labels": {"a": "1", "b": "2"}, "resources": {"memory_bytes": 64 << 20}}
    )
    two = new_spec(
        {"labels": {"b": "2", "a": "1"}, "resources": {"memory_bytes": "64MiB"}, "env": ["A=1"], "image": "x"}
    )
    assert spec_sha256(one) == spec_sha256(two)
    assert spec_sha256(one) != spec_sha256(new_spec({"image": "x"}))


@pytest.mark.parametrize(
    "fields", [FULL, FULL | NEWER, {"image": "x", "labels": {"b": "€", "a": ""}, "env": {"A": "\n"}}]
)
def test_the_fingerprint_is_the_same_on_both_sides(fields: dict[str, Any]) -> None:
    spec = new_spec(fields)
    read = decode_job(encode_job(JobRequest(spec=spec))).spec
    assert spec_sha256(read) == spec_sha256(spec)
    assert request_sha256(read) == request_sha256(spec)


def test_different_specs_have_different_fingerprints() -> None:
    others = [{**FULL, name: value} for name, value in {"image": "y", "grace": 1, "stdin": "x", "labels": {}}.items()]
    assert len({spec_sha256(new_spec(fields)) for fields in (FULL, *others)}) == 5


def test_a_field_with_its_default_does_not_change_the_fingerprint() -> None:
    """So a field that a newer release adds changes nothing for those who do not use it."""
    said = SandboxSpec.model_validate(SandboxSpec(image="x").model_dump())
    assert spec_sha256(said) == spec_sha256(SandboxSpec(image="x"))


def test_all_faults_of_a_spec_are_reported_at_once() -> None:
    faulty = {
        "image": "",
        "command": "ls",
        "working_dir": "tmp",
        "env": ["NOVALUE"],
        "resources": {"memory_bytes": -1, "cpu_quota": -1, "pids_limit": -1, "disk_bytes": -1},
        "timeout": -1,
        "nonsense": 1,
    }
    with pytest.raises(SpecInvalid) as caught:
        new_spec(faulty)
    fields = {error["field"] for error in caught.value.errors}
    assert fields == {
        "image",
        "command",
        "working_dir",
        "env.0",
        "resources.memory_bytes",
        "resources.cpu_quota",
        "resources.pids_limit",
        "resources.disk_bytes",
        "timeout",
        "nonsense",
    }
    with pytest.raises(ValidationError) as plain:
        SandboxSpec.model_validate(faulty)
    assert plain.value.error_count() == len(fields)


@pytest.mark.parametrize("security", [{"privileged": True}, {"network_mode": "host"}])
def test_a_violation_outranks_other_faults_which_are_reported_too(security: dict[str, Any]) -> None:
    with pytest.raises(SecurityViolation) as caught:
        new_spec({"image": "", "security": security, "timeout": -1})
    assert {"image", "timeout"} < {error["field"] for error in caught.value.errors}


def test_errors_repeat_no_value() -> None:
    with pytest.raises(SpecInvalid) as caught:
        new_spec(
            {"image": "x", "env": ["s3cret"], "stdin": {"data": "s3cret", "encoding": "base64"}, "timeout": "s3cret"}
        )
    assert len(caught.value.errors) == 3
    assert "s3cret" not in f"{caught.value} {caught.value!r} {caught.value.args}"
    with pytest.raises(ValidationError) as plain:
        SandboxSpec(image="x", env=("s3cret",))
    assert "s3cret" not in str(plain.value)


def test_another_contract_version_is_refused() -> None:
    for version in (7, 0, "1", None, True):
        with pytest.raises(SpecInvalid, match="contract: the version "):
            decode_job(json.dumps({"contract": version, "spec": {"image": "x"}}))


def test_a_request_says_the_lowest_contract_that_has_its_fields() -> None:
    plain = JobRequest(spec=SandboxSpec(image="x", priority=6, max_attempts=3, queue_ttl=86400))
    assert encode_job(plain) == '{"contract":1,"spec":{"image":"x"}}'
    for field, value in NEWER.items():
        request = JobRequest(batch="b", spec=new_spec({"image": "x", field: value}))
        text = encode_job(request)
        assert json.loads(text)["contract"] == request.contract == 2
        assert decode_job(text) == request
        assert spec_sha256(request.spec) == spec_sha256(plain.spec), "what runs is the same"
        assert request_sha256(request.spec) != request_sha256(plain.spec)


def test_requires_is_contract_3_and_its_order_does_not_count() -> None:
    request = JobRequest(spec=new_spec({"image": "x", "requires": {"gpu": "yes", "arch": "x86_64"}, "priority": 0}))
    text = encode_job(request)
    assert json.loads(text)["contract"] == request.contract == 3
    assert decode_job(text) == request
    other = new_spec({"image": "x", "requires": {"arch": "x86_64", "gpu": "yes"}, "priority": 0})
    assert spec_sha256(other) == spec_sha256(request.spec)
    assert request_sha256(other) == request_sha256(request.spec)
    assert spec_sha256(other) != spec_sha256(SandboxSpec(image="x"))
    for contract in (1, 2):
        with pytest.raises(SpecInvalid, match="what it requires of its host need contract version 3"):
            decode_job(json.dumps({"contract": contract, "spec": {"image": "x", "requires": {"gpu": "yes"}}}))
    for faulty in (
        {"": "x"},
        {"__a": "x"},
        {"a": "\x1b"},
        {str(number): "" for number in range(MAX_LABELS + 1)},
        ["gpu"],
    ):
        with pytest.raises(SpecInvalid) as caught:
            new_spec({"image": "x", "requires": faulty})
        assert {error["field"].split(".")[0] for error in caught.value.errors} == {"requires"}


def test_needs_list_only_what_not_every_host_has() -> None:
    assert json.loads(join_needs(1, encode_needs(SandboxSpec(image="x:latest")))) == {"contract": 1, "image": "x"}
    pinned = f"team/x:latest@sha256:{'0' * 64}"
    assert json.loads(join_needs(3, encode_needs(new_spec(FULL | {"image": pinned, "requires": {"gpu": "yes"}})))) == {
        "contract": 3,
        "image": pinned.replace(":latest", ""),
        "memory_bytes": 256 << 20,
        "cpu_quota": 50000,
        "pids_limit": 32,
        "disk_bytes": 1 << 20,
        "timeout": 2.5,
        "output_bytes": 1 << 10,
        "requires": {"gpu": "yes"},
    }


def test_a_worker_one_contract_behind_refuses_newer_fields_with_a_clear_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = encode_job(JobRequest(spec=SandboxSpec(image="x", max_attempts=1)))
    monkeypatch.setattr("sandfleet_config.wire.CONTRACT_VERSIONS", (1,))
    with pytest.raises(SpecInvalid, match="the version is 2, this side speaks 1: bring both to one release"):
        decode_job(text)
    assert decode_job('{"contract":1,"spec":{"image":"x"}}').spec.max_attempts == 3


def test_a_message_with_fields_newer_than_its_contract_is_refused() -> None:
    with pytest.raises(SpecInvalid, match="need contract version 2"):
        decode_job('{"contract":1,"spec":{"image":"x","priority":0}}')


@each_row(
    ("field", "value"),
    [
        ("idempotency_key", "k" * 257),
        ("idempotency_key", "\x1b[31m"),
        ("priority", -1),
        ("priority", 10),
        ("priority", 1.5),
        ("queue_ttl", 0),
        ("queue_ttl", 8 * 86400),
        ("max_attempts", 0),
        ("max_attempts", 21),
        ("retry_on", ["NO_SUCH_CODE"]),
        ("retry_on", ["OK"]),
        ("retry_on", ["INTERNAL", "CANCELLED"]),
        ("retry_on", ["EXPIRED"]),
    ],
)
def test_delivery_fields_are_checked(field: str, value: object) -> None:
    with pytest.raises(SpecInvalid) as caught:
        new_spec({"image": "x", field: value})
    assert [error["field"].split(".")[0] for error in caught.value.errors] == [field]


def test_retry_on_is_a_set_of_codes_and_by_default_the_host_category() -> None:
    spec = new_spec({"image": "x", "retry_on": ["INTERNAL", "EXIT_NONZERO", "INTERNAL"]})
    assert spec.retry_on == (ErrorCode.EXIT_NONZERO, ErrorCode.INTERNAL)
    assert new_spec({"image": "x", "retry_on": []}).retry_on == ()
    assert set(SandboxSpec(image="x").retry_on) == {code for code in ErrorCode if code.category is Category.HOST}


@each_row("text", ["", "nonsense", "[]", "1", "null", '"x"', "{}", '{"contract":1}', "[" * 100_000, None, {}, 7])
def test_a_message_that_is_not_a_spec_is_refused(text: object) -> None:
    with pytest.raises(SpecInvalid):
        decode_job(text)


def test_the_size_limit_counts_bytes_on_both_sides() -> None:
    request = JobRequest(spec=SandboxSpec(image="x", stdin=Payload(data="é" * 100)))
    text = encode_job(request)
    size = len(text.encode())
    assert decode_job(encode_job(request, size), size) == request
    with pytest.raises(SpecTooLarge, match=str(size)):
        encode_job(request, size - 1)
    with pytest.raises(SpecTooLarge):
        decode_job(text, size - 1)


def test_kombus_type_key_in_a_spec_stays_plain_text() -> None:
    """kombu's decoder acts on such a dict, or drops the message; our string hides it."""
    from kombu.utils.json import dumps, loads

    trap = {"__type__": "datetime", "__value__": "2020-01-01T00:00:00"}
    assert loads(dumps([trap])) != [trap]  # the trap is a real one
    text = json.dumps({"contract": 1, "spec": {"image": "x", "labels": trap}})
    assert loads(dumps([text])) == [text]
    with pytest.raises(SpecInvalid):
        decode_job('{"contract":1,"spec":{"__type__":"bytes","__value__":"eA=="}}')


def test_payloads_take_text_and_bytes() -> None:
    assert Payload.model_validate("héllo").to_bytes() == "héllo".encode()
    assert Payload.model_validate(b"plain").encoding == "utf-8"
    binary = Payload.model_validate(bytes(range(256)))
    assert (binary.encoding, binary.to_bytes()) == ("base64", bytes(range(256)))
    assert Payload.model_validate_json(binary.model_dump_json()) == binary


def test_the_line_of_a_spec_is_printable_and_shows_neither_env_nor_stdin() -> None:
    spec = new_spec({"image": "x", "command": ["sh", "-c", "a\x1b[31m"], "env": ["K=s3cret"], "stdin": "s3cret"})
    assert spec.to_line() == r"x sh -c 'a\x1b[31m'"
    assert len(new_spec({"image": "x", "command": ["y" * 500]}).to_line()) == 120
