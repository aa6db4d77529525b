"""One spec cannot take a worker's memory; a wish that cannot work is refused with the minimum."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sandfleet import Fleet, SpecTooLarge
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import JobRequest, decode_job, encode_job, new_spec

KIB = 1024


def faults_of(**fields: Any) -> dict[str, str]:
    with pytest.raises(SpecInvalid) as caught:
        new_spec({"image": "x", **fields})
    return {error["field"]: error["message"] for error in caught.value.errors}


def test_the_spec_that_took_7_gb_of_a_worker_is_refused_at_submit() -> None:
    poison = {"image": "x", "command": ["x" * 100_000], "env": {"PATH": "a:" * 70_000}}
    fleet: Fleet = FakeFleet()
    with pytest.raises(SpecInvalid) as caught:
        fleet.submit(poison)
    assert {error["field"] for error in caught.value.errors} == {"command.0", "env.0"}
    assert all("the limit is 64 KiB" in error["message"] for error in caught.value.errors)
    # Forged into Redis, it meets the same wall.
    with pytest.raises(SpecInvalid):
        decode_job(json.dumps({"contract": 1, "spec": {**poison, "env": [f"PATH={'a:' * 70_000}"]}}), 1 << 20)


def test_a_fault_names_the_bound_that_the_spec_breaks() -> None:
    long = "y" * (64 * KIB + 1)
    for fields, field, said in (
        ({"command": ["sh", long]}, "command.1", "has 65537 bytes (about 64 KiB), the limit is 64 KiB"),
        ({"command": ["sh", "é" * (32 * KIB + 1)]}, "command.1", "the limit is 64 KiB"),
        ({"env": [f"A={long}"]}, "env.0", "the limit is 64 KiB"),
        ({"env": {"PATH": ":".join(["/a"] * 257)}}, "env.0", "PATH has 257 folders, the limit is 256"),
        ({"working_dir": "/" + "d" * 4095}, "working_dir", "the limit is 4095 bytes"),
        ({"command": ["x"] * 4097}, "command", "has 4097 items, the limit is 4096"),
        ({"env": [f"A{n}=1" for n in range(4097)]}, "env", "has 4097 items, the limit is 4096"),
        ({"command": ["y" * 60_000] * 9}, "spec", "command and env have 540000 bytes (about 527.3 KiB) together"),
        ({"labels": {f"k{n}": "v" for n in range(33)}}, "labels", "has too many items, the limit is 32"),
        ({"labels": {"k" * 65: "v"}}, f"labels.{'k' * 65}", "the name has too many characters, the limit is 64"),
        ({"labels": {"k": "v" * 257}}, "labels.k", "has too many characters, the limit is 256"),
        ({"image": "i" * 513}, "image", "has too many characters, the limit is 512"),
        ({"security": {"user": "u" * 513}}, "security.user", "has too many characters, the limit is 512"),
    ):
        faults = faults_of(**fields)
        assert list(faults) == [field]
        assert said in faults[field]


def test_a_spec_exactly_at_its_bounds_is_accepted() -> None:
    fields: dict[str, Any] = {
        "image": "i" * 512,
        "command": ["sh", "y" * (64 * KIB)],
        "env": {"PATH": ":".join(["/a"] * 256), "A": "é" * (32 * KIB - 1)},
        "working_dir": "/" + "d" * 4094,
    }
    request = JobRequest(spec=new_spec(fields))
    assert decode_job(encode_job(request)) == request
    assert len(new_spec({"image": "x", "command": ["y" * 60_000] * 8}).command) == 8


def test_a_spec_within_its_bounds_may_still_be_too_large_for_the_fleet() -> None:
    with pytest.raises(SpecTooLarge, match=r"has 3\d+ bytes \(about 293 KiB\), the limit is 256 KiB"):
        FakeFleet().submit(SandboxSpec(image="x", command=["y" * 60_000] * 5))


def test_a_limit_too_small_to_work_is_refused_with_the_least_value() -> None:
    for field, below, least, said in (
        ("memory_bytes", 4096, 16 << 20, "4 KiB cannot work, the least is 16 MiB"),
        ("memory_bytes", "15MiB", "16MiB", "15 MiB cannot work, the least is 16 MiB"),
        (
            "cpu_quota",
            1,
            10_000,
            "0.00001 cores (cpu_quota 1) cannot work, the least is 0.1 cores",
        ),
        ("cpu_quota", 999, 10_000, "the least is 0.1 cores (cpu_quota 10000)"),
        ("disk_bytes", 1, 4096, "1 byte cannot work, the least is 4 KiB"),
    ):
        faults = faults_of(resources={field: below})
        assert list(faults) == [f"resources.{field}"]
        assert said in faults[f"resources.{field}"]
        assert new_spec({"image": "x", "resources": {field: least}}).image == "x"
    assert faults_of(timeout=1e-9) == {"timeout": "0.000000001 s cannot work, the least is 0.001 s"}
    zeros = {"memory_bytes": 0, "cpu_quota": 0, "pids_limit": 0, "disk_bytes": 0}
    assert new_spec({"image": "x", "timeout": 0, "resources": zeros}) == SandboxSpec(image="x")


def test_half_a_character_is_refused_in_every_field() -> None:
    """A byte of argv that is no UTF-8 comes from Python as half a UTF-16 pair."""
    half = "a\udcff"
    for fields, field in (
        ({"command": ["echo", half]}, "command.1"),
        ({"env": [f"A={half}"]}, "env.0"),
        ({"env": [f"{half}=1"]}, "env.0"),
        ({"working_dir": f"/{half}"}, "working_dir"),
        ({"image": half}, "image"),
        ({"labels": {half: "x"}}, "labels.a\ufffd\ufffd\ufffd"),
        ({"labels": {"x": half}}, "labels.x"),
        ({"security": {"user": half}}, "security.user"),
        ({"stdin": half}, "stdin"),
        ({"idempotency_key": half}, "idempotency_key"),
    ):
        assert list(faults_of(**fields)) == [field], field
        with pytest.raises(SpecInvalid):
            FakeFleet().submit({"image": "x", **fields})
    with pytest.raises(SpecInvalid, match="batch"):
        FakeFleet().submit({"image": "x"}, batch=half)
