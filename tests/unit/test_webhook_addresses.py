"""Which addresses a webhook may go to, when it is tried again, and how it is signed."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from sandfleet_config.environment import check_environment
from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.web_settings import EndpointSettings, WebSettings
from sandfleet_web.notify.addresses import AddressRefused, NameUnknown, find_refusal, resolve
from sandfleet_web.notify.attempt import Answer, encode_body
from sandfleet_web.notify.endpoint import read_secrets
from sandfleet_web.notify.queue import TakenWebhook
from sandfleet_web.notify.sender import decide

DAY = 86400.0
WEBHOOK = TakenWebhook("msg_" + "0" * 40, "b", "ci", 1_700_000_000_123, 2, {"OK": 2}, 1, 1_000_000)


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("127.8.9.10", "loopback"),
        ("::1", "loopback"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("fec0::1", "private"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("0.0.0.0", "no address"),  # noqa: S104
        ("::", "no address"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "private"),
        ("240.0.0.1", "private"),
        ("192.0.2.1", "private"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:0.0.0.0", "no address"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b:1::1", "private"),
        ("2002:7f00:1::", "loopback"),
        ("2001:0:4136:e378:8000:63bf:5601:5601", "link-local"),
        ("::7f00:1", "reserved"),
    ],
)
def test_addresses_that_are_refused(address: str, word: str) -> None:
    assert word in find_refusal(address, allow_private=False)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert find_refusal(address, allow_private=False) == ""


def test_an_endpoint_may_allow_private_addresses() -> None:
    for address in ("127.0.0.1", "10.0.0.1", "::ffff:10.0.0.1", "169.254.1.1"):
        assert find_refusal(address, allow_private=True) == ""
    for address in ("0.0.0.0", "224.0.0.1"):  # noqa: S104
        assert find_refusal(address, allow_private=True) != ""


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "017700000001"])
def test_other_spellings_of_an_address_are_read_as_the_system_reads_them(host: str) -> None:
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1 is a loopback address"):
        resolve(host, 443, seconds=5, allow_private=False)


def test_dns_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_late(*_: object, **__: object) -> list[object]:
        time.sleep(1)
        return []

    monkeypatch.setattr("socket.getaddrinfo", answer_late)
    started = time.monotonic()
    with pytest.raises(NameUnknown, match=r"within 0\.1 s"):
        resolve("x.example", 443, seconds=0.1, allow_private=False)
    assert time.monotonic() - started < 0.8


def test_a_failed_webhook_is_tried_for_a_day_with_longer_and_longer_pauses() -> None:
    webhook, now, pauses = WEBHOOK, WEBHOOK.first + 0.0, []
    for attempts in itertools.count(1):
        result, pause = decide(webhook._replace(attempts=attempts), Answer(500), now, DAY)
        if result == "dead":
            break
        pauses.append(pause)
        now += pause * 1000
    assert 12 < len(pauses) < 25
    assert 4 <= pauses[0] <= 6
    assert pauses[4] > 100 * pauses[0]
    assert abs(sum(pauses) - DAY) < 2, "the last attempt is at its end"
    assert len({decide(WEBHOOK, Answer(500), WEBHOOK.first, DAY)[1] for _ in range(20)}) > 10, "jitter"


@pytest.mark.parametrize("attempts", [-(10**9), 0, 10**9])
def test_a_forged_number_of_attempts_gives_a_pause_all_the_same(attempts: int) -> None:
    result, pause = decide(WEBHOOK._replace(attempts=attempts), Answer(0, "x"), WEBHOOK.first, DAY)
    assert result == "failed"
    assert 4 <= pause <= 2.5 * 3600


def test_what_ends_a_webhook() -> None:
    assert decide(WEBHOOK, Answer(299), 0, DAY) == ("delivered", 0.0)
    assert decide(WEBHOOK, Answer(410), 0, DAY) == ("dead", 0.0)
    for status in (0, 199, 301, 308, 400, 404, 429, 500):
        assert decide(WEBHOOK, Answer(status), WEBHOOK.first, DAY)[0] == "failed"


def test_the_body_has_the_counts_and_when() -> None:
    assert encode_body(WEBHOOK) == (
        b'{"type": "batch.done", "timestamp": "2023-11-14T22:13:20.123Z",'
        b' "data": {"batch": "b", "total": 2, "codes": {"OK": 2}}}'
    )


def test_a_file_of_secrets_is_private_and_each_of_its_lines_signs(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("whsec_" + "A" * 32 + "\n\nwhsec_" + "B" * 32 + "\n")
    path.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        read_secrets(path)
    path.chmod(0o600)
    assert [len(secret) for secret in read_secrets(path)] == [24, 24]
    for text in ("", "secret\n", "whsec_!!!\n", ("whsec_" + "A" * 32 + "\n") * 5):
        path.write_text(text)
        with pytest.raises(ValueError, match="secret_file"):
            read_secrets(path)


@pytest.mark.parametrize(
    "url",
    [
        "https://h/\u00fc",
        "https://b\u00fccher.example/",
        "https://h/a b",
        "https://h/\r\nX: y",
        "https://h/\x00",
        "\thttps://h/",
    ],
)
def test_a_url_that_cannot_be_sent_as_it_is_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="ASCII") as caught:
        EndpointSettings.model_validate({"url": url, "secret_file": tmp_path / "x"})
    assert "h/" not in str(caught.value)


def test_endpoints_are_read_from_variables_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("SANDFLEET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SANDFLEET_WEB__ENDPOINTS__CI__URL", "https://ci.example/hook")
    monkeypatch.setenv("SANDFLEET_WEB__ENDPOINTS__CI__SECRET_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("SANDFLEET_WEB__DEADLINE_SECONDS", "7")
    check_environment()
    settings = WebSettings()
    assert settings.web.endpoints["ci"].url.get_secret_value() == "https://ci.example/hook"
    assert "ci.example" not in repr(settings)
    assert settings.web.deadline_seconds == 7
    monkeypatch.setenv("SANDFLEET_WEB__ENDPOINTS__CI__URI", "x")
    with pytest.raises(SettingsInvalid, match="ENDPOINTS__CI__URI"):
        check_environment()
