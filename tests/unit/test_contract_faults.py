"""Words for the faults of a spec, for the person who typed it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from sandfleet.fleet import read_settings
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.wire import decode_job, new_spec


def message_of(field: str, value: object) -> tuple[str, str]:
    """Return the first fault of a spec where the field of that dotted path has that value."""
    for name in reversed(field.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    with pytest.raises(SpecInvalid) as caught:
        new_spec({"image": "x", **value})
    return caught.value.errors[0]["field"], caught.value.errors[0]["message"]


def test_a_mistyped_field_gets_a_hint_at_the_right_one() -> None:
    for typed, meant in {
        "comand": "command",
        "cmd": "command",
        "entrypoint": "command",
        "envs": "env",
        "environment": "env",
        "workdir": "working_dir",
        "timeout_seconds": "timeout",
        "memory": "resources.memory_bytes",
        "memory_bytes": "resources.memory_bytes",
        "cpu": "resources.cpu_quota",
        "network": "security.network_mode",
        "user": "security.user",
        "resources.memory": "resources.memory_bytes",
        "resources.pids": "resources.pids_limit",
        "resources.timeout": "timeout",
        "output.limit": "output.on_limit",
        "Image": "image",
    }.items():
        assert message_of(typed, 1) == (typed, f"there is no such field, did you mean {meant}?")
    assert message_of("zzz", 1) == ("zzz", "there is no such field")


def test_a_mistyped_field_of_a_message_gets_a_hint_too() -> None:
    for text, said in (
        (
            '{"contract":1,"spec":{"image":"x","resources":{"memory":1}}}',
            "resources.memory: there is no such field, did",
        ),
        ('{"contract":1,"spec":{"image":"x"},"bach":"b"}', "bach: there is no such field, did you mean batch?"),
    ):
        with pytest.raises(SpecInvalid, match=said.replace(".", r"\.").replace("?", r"\?")):
            decode_job(text)


def test_every_kind_of_fault_has_a_plain_message() -> None:
    code = ", ".join(f"'{code.value}'" for code in ErrorCode)
    for field, value, said in (
        ("image", "", "must not be empty"),
        ("image", 7, "must be a string"),
        ("command", {"a": 1}, "must be a list"),
        ("env", 7, "must be a list"),
        ("labels", 7, "must be an object of names and values"),
        ("labels", {"": "x"}, "the name must not be empty"),
        ("labels", {"__a": "x"}, "the name must not begin with two underscores"),
        ("resources", 7, "must be an object"),
        ("resources.memory_bytes", -1, "must not be negative"),
        ("resources.memory_bytes", "lots", "must be a number of bytes, or a size such as 256MiB"),
        ("resources.memory_bytes", 1 << 80, "must be at most 4194304 TiB"),
        ("resources.cpu_quota", 1.5, "must be a whole number"),
        ("resources.cpu_quota", "a", "must be a whole number"),
        ("resources.pids_limit", 1 << 30, "must be at most 4194304 processes and threads"),
        ("security.network_mode", "bridge", "must be 'none' or 'sandbox'"),
        ("security.privileged", "maybe", "must be true or false"),
        ("timeout", -1, "must not be negative"),
        ("timeout", "soon", "must be a number"),
        ("timeout", float("inf"), "must be a finite number"),
        ("timeout", 1e12, "must be at most 315360000 s (3650 days)"),
        ("queue_ttl", 0, "must be more than 0 s"),
        ("queue_ttl", 8 * 86400, "must be at most 604800 s (7 days)"),
        ("priority", 10, "must be at most 9"),
        ("max_attempts", 0, "must be at least 1"),
        ("output.keep", "middle", "must be 'head', 'tail' or 'both'"),
        ("retry_on", ["NOPE"], f"must be {code[::-1].replace(' ,', ' ro ', 1)[::-1]}"),
    ):
        assert message_of(field, value)[1] == said, field
    with pytest.raises(SpecInvalid, match="image: is required"):
        new_spec({})


def test_a_faulty_setting_gets_the_same_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_RESULT_TTL_SECONDS", "0")
    monkeypatch.setenv("SANDFLEET_MEMORY_HIGH_PERCENT", "lots")
    with pytest.raises(SettingsInvalid) as caught:
        read_settings()
    assert str(caught.value) == (
        "SANDFLEET_RESULT_TTL_SECONDS: must be more than 0 s; SANDFLEET_MEMORY_HIGH_PERCENT: must be a whole number"
    )


def test_faults_of_an_execute_request_name_its_own_fields() -> None:
    for fields, said in (
        ({"timout": 1}, "timout: there is no such field, did you mean timeout?"),
        ({"limits": {"memory": 1}}, "limits.memory: there is no such field, did you mean limits.memory_bytes?"),
    ):
        with pytest.raises(SpecInvalid) as caught:
            FakeFleet().execute("1", **fields)
        assert caught.value.message == said


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            {"image": "python", "command": ["true"]},
            'contract: the version is missing, the argument is a bare spec: send {"contract": 1, "spec": {...}}',
        ),
        ({"spec": {}}, 'contract: the version is missing, the argument is an object without it: send {"contract": 1,'),
        (
            {"contract": 9, "spec": {}},
            "contract: the version is 9, this side speaks 1 to 6: bring both to one release",
        ),
        ({"contract": "1", "spec": {}}, "contract: the version must be a number, 1 to 6"),
    ],
)
def test_a_message_without_a_contract_version_gets_the_field_and_an_example(
    argument: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecInvalid) as caught:
        decode_job(json.dumps(argument))
    assert caught.value.message.startswith(said)
    assert [error["field"] for error in caught.value.errors] == ["contract"]


def test_thousands_of_faults_of_one_spec_take_no_time() -> None:
    """The claims of a worker wait meanwhile; 20,000 hints took 4 s."""
    names = {f"f{number:05}": 1 for number in range(20_000)}
    for fields in (names, {"resources": names}, {"files": [{"f": 1}] * 20_000}, {"privileged": True, **names}):
        text = json.dumps({"contract": 5, "spec": {"image": "x", **fields}})
        began = time.thread_time()
        with pytest.raises(SpecInvalid, match=r"; and \d+ more$") as caught:
            decode_job(text)
        assert time.thread_time() - began < 1.5
        assert len(caught.value.errors) == 50
