"""Each place that shows a command hides its secrets, and shows them if the setting says so."""

from __future__ import annotations

import json

import pytest
from kombu.message import Message
from sandfleet.channel.message import new_messages
from sandfleet.channel.redis_dead_letters import parse_dead_letter
from sandfleet.submit.check import JobChecker
from sandfleet.submit.encode import JobEncoder
from sandfleet_config.settings import Settings
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import JobRequest, encode_job
from sandfleet_worker.delivery.read_message import read_message

SECRET = "hunter2-Zx"
SPEC = SandboxSpec(image="x", command=["run", f"--token={SECRET}"])


@pytest.mark.parametrize("is_whole", [False, True])
def test_the_record_and_the_message_say_what_the_producer_shows(is_whole: bool) -> None:  # noqa: FBT001
    encoder = JobEncoder(None, 10_000, shows_whole=is_whole)
    [job] = encoder.name([encoder.encode(JobChecker(None).check(SPEC))])
    headers = json.loads(new_messages([job], "q")[0])["headers"]
    texts = [job.line, job.record.line, job.encode_record().decode(), json.dumps(headers)]
    assert [SECRET in text for text in texts] == [is_whole] * 4


@pytest.mark.parametrize("is_whole", [False, True])
def test_flower_is_told_what_the_worker_shows(is_whole: bool) -> None:  # noqa: FBT001
    body = json.dumps([[encode_job(JobRequest(spec=SPEC))], {}, {}])
    headers = {"id": "a", "task": "sandfleet.run", "argsrepr": f"forged {SECRET}"}
    message = Message(body=body, content_type="application/json", content_encoding="utf-8", headers=headers)
    found = read_message(message, 10_000, shows_whole=is_whole)
    assert found is not None
    assert [SECRET in found.line, SECRET in found.to_headers()["argsrepr"]] == [is_whole] * 2
    assert SECRET not in found.log_line


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_dead_letter_says_what_its_reader_shows(is_whole: bool) -> None:  # noqa: FBT001
    encoder = JobEncoder(None, 10_000)
    [job] = encoder.name([encoder.encode(JobChecker(None).check(SPEC))])
    fields = {b"message": new_messages([job], "q")[0], b"code": b"INTERNAL"}
    assert (SECRET in parse_dead_letter("a", fields, shows_whole=is_whole).line) == is_whole


def test_commands_are_redacted_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Settings().shows_whole_commands
    monkeypatch.setenv("SANDFLEET_SHOW_COMMANDS", "whole")
    assert Settings().shows_whole_commands
