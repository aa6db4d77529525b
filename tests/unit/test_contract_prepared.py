"""Contract 6: jobs that name a preparation, and outcomes that say how they started."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rows import each_row
from sandfleet import ErrorCode, Outcome
from sandfleet.channel.decoder import decode_outcome
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.contract import find_contract
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.fingerprint import spec_sha256
from sandfleet_config.outcome import Runtime
from sandfleet_config.run_summary import NO_FACTS, encode_summary
from sandfleet_config.scripts import stored_result
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import JobRequest, decode_job, encode_job, encode_needs, join_needs, new_spec


@pytest.mark.parametrize("name", ["sci", "off", "numpy-2.1_x", "0", "a" * 64])
def test_a_named_preparation_needs_contract_6(name: str) -> None:
    request = JobRequest(spec=new_spec({"image": "x", "prepared": name}))
    text = encode_job(request)
    assert text == f'{{"contract":6,"spec":{{"image":"x","prepared":"{name}"}}}}'
    assert decode_job(text) == request
    assert join_needs(find_contract(request.spec), encode_needs(request.spec)).startswith('{"contract":6,')


def test_a_request_of_an_older_contract_may_not_name_one() -> None:
    with pytest.raises(SpecInvalid, match=r"preparations \(prepared\) need contract version 6"):
        decode_job(json.dumps({"contract": 5, "spec": {"image": "x", "prepared": "sci"}}))


def test_a_job_that_says_nothing_stays_as_it_was() -> None:
    plain = SandboxSpec(image="x")
    assert encode_job(JobRequest(spec=new_spec({"image": "x", "prepared": None}))) == encode_job(JobRequest(spec=plain))
    assert spec_sha256(new_spec({"image": "x", "prepared": None})) == spec_sha256(plain)
    assert spec_sha256(new_spec({"image": "x", "prepared": "sci"})) != spec_sha256(plain)


@each_row("name", ["", "Sci", "-sci", "sci/x", "a" * 65, "sci\n", " sci", "ä"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(SpecInvalid, match=r"prepared: must be `off` or a preparation's name: a-z 0-9"):
        new_spec({"image": "x", "prepared": name})


def test_a_fake_fleet_takes_it() -> None:
    fleet = FakeFleet()
    assert fleet.submit({"image": "x", "prepared": "sci"}).outcome(timeout=1).start == "cold"
    assert fleet.specs[0].prepared == "sci"


def stored(outcome: dict[str, Any]) -> bytes:
    return json.dumps({"status": "SUCCESS", "result": outcome}).encode()


@pytest.mark.parametrize(
    ("runtime", "duration", "start"),
    [(Runtime(warm=True), 0.5, "warm"), (Runtime(), 0.5, "cold"), (Runtime(), None, None)],
)
def test_the_outcome_of_an_older_worker_says_how_it_started(
    runtime: Runtime, duration: float | None, start: str | None
) -> None:
    outcome = Outcome.of(ErrorCode.OK, "j1", runtime=runtime, duration=duration)
    older = {name: value for name, value in outcome.to_json().items() if name != "start"}
    assert Outcome.read(older).start == start


@pytest.mark.parametrize("start", ["prepared", "a kind of a newer release"])
def test_how_a_job_started_is_read_as_it_was_written(start: str) -> None:
    outcome = Outcome.of(ErrorCode.OK, "j1", runtime=Runtime(warm=True), duration=0.5, start=start)
    assert Outcome.read(json.loads(json.dumps(outcome.to_json()))) == outcome
    found = decode_outcome(stored_result(outcome).encode())
    assert found is not None
    assert found.start == start


def test_the_history_gets_how_it_started() -> None:
    outcome = Outcome.of(ErrorCode.OK, "j1", runtime=Runtime(warm=True), duration=0.5, start="prepared")
    assert json.loads(encode_summary(outcome, NO_FACTS))["start"] == "prepared"
    none = Outcome.of(ErrorCode.CANCELLED, "j1")
    assert "start" not in json.loads(encode_summary(none, NO_FACTS))
