"""Receivers answer well, badly, slowly or never.

Each webhook arrives, is tried again, or becomes a dead letter.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from receivers import SECRET, answer, close_early, drip, hang, open_receiver, send_endless_body
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.webhooks import DEAD_KEY, DUE_KEY
from standardwebhooks.webhooks import Webhook
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from hooks import Hooks


def read_log(client: Any) -> list[tuple[str, str]]:
    return [
        (fields[b"result"].decode(), fields[b"reason"].decode())
        for _, fields in client.xrange(f"{KEY_PREFIX}webhooks:log")
    ]


def test_a_webhook_arrives_signed_with_the_counts_and_nothing_else(hooks: Hooks, client: Any) -> None:
    with open_receiver() as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        hooks.end_batch(name="nightly", count=3)
        wait_until(lambda: read_log(client), 10, "it is delivered")
    (received,) = receiver.received
    payload = Webhook(SECRET).verify(received.body, received.headers)
    assert payload == received.payload
    assert set(payload) == {"type", "timestamp", "data"}
    assert payload["type"] == "batch.done"
    assert payload["data"] == {"batch": "nightly", "total": 3, "codes": {"OK": 3}}
    assert received.headers["content-type"] == "application/json"
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert b"s3cret" not in received.body
    assert read_log(client) == [("delivered", "the receiver answered 204")]
    assert not client.exists(DUE_KEY, f"{KEY_PREFIX}webhook:{received.webhook_id}")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (answer(500), "the receiver answered 500"),
        (answer(429), "the receiver answered 429"),
        (close_early, "Server disconnected"),
        (hang, "did not answer within the deadline of 0.5 s"),
        (drip, "did not answer within the deadline of 0.5 s"),
    ],
    ids=["500", "429", "closes early", "hangs", "drips"],
)
def test_a_receiver_that_fails_gets_the_same_webhook_again(hooks: Hooks, client: Any, bad: Any, reason: str) -> None:
    with (
        open_receiver(bad, bad, answer(200)) as receiver,
        hooks.sender({"ci": hooks.endpoint(receiver.port)}, deadline_seconds=0.5),
    ):
        hooks.end_batch()
        wait_until(lambda: len(read_log(client)) == 3, 20, "it is delivered")
    assert [result for result, _ in read_log(client)] == ["failed", "failed", "delivered"]
    assert reason in read_log(client)[0][1]
    assert len({received.webhook_id for received in receiver.received}) == 1
    assert len({received.body for received in receiver.received}) == 1
    for received in receiver.received:
        Webhook(SECRET).verify(received.body, received.headers)


def test_an_endless_answer_is_cut_and_counts_by_its_status(hooks: Hooks, client: Any) -> None:
    with (
        open_receiver(send_endless_body) as receiver,
        hooks.sender({"ci": hooks.endpoint(receiver.port)}, deadline_seconds=5),
    ):
        hooks.end_batch()
        started = time.monotonic()
        wait_until(lambda: read_log(client), 10, "it is delivered")
        assert time.monotonic() - started < 4
    assert read_log(client) == [("delivered", "the receiver answered 200")]


def test_a_redirect_is_not_followed(hooks: Hooks, client: Any) -> None:
    with open_receiver() as inner:
        redirect = answer(307, Location=f"http://127.0.0.1:{inner.port}/hook")
        with open_receiver(redirect, answer(410)) as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
            hooks.end_batch()
            wait_until(lambda: len(read_log(client)) == 2, 10, "it was tried twice")
        assert inner.received == []
    assert read_log(client)[0] == (
        "failed",
        "the receiver answered 307: redirects are not followed, put the new URL into the settings",
    )


def test_410_stops_the_attempts(hooks: Hooks, client: Any) -> None:
    with open_receiver(answer(410)) as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        hooks.end_batch()
        wait_until(lambda: client.zcard(DEAD_KEY) == 1, 10, "it is a dead letter")
        time.sleep(0.5)
    assert len(receiver.received) == 1
    assert read_log(client) == [("dead", "the receiver answered 410 (Gone): it wants no more attempts")]


def test_attempts_end_after_the_time_of_the_settings(hooks: Hooks, client: Any) -> None:
    with (
        open_receiver(answer(500)) as receiver,
        hooks.sender({"ci": hooks.endpoint(receiver.port)}, retry_seconds=0.5),
    ):
        hooks.end_batch()
        wait_until(lambda: client.zcard(DEAD_KEY) == 1, 10, "it is given up")
    assert len(receiver.received) >= 3
    assert read_log(client)[-1][1].startswith(
        f"given up after {len(receiver.received)} attempts: the receiver answered 500"
    )


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "127.0.0.1", "10.0.0.1", "::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "0.0.0.0"],  # noqa: S104,
)
def test_a_name_that_means_a_private_address_is_not_connected_to(
    hooks: Hooks, client: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(kind, socket.SOCK_STREAM, 6, "", (address, 443))])
    connects: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", lambda *given, **_: connects.append(given))
    endpoint = hooks.endpoint(443) | {"url": "https://receiver.example/hook", "allow_private": False}
    with hooks.sender({"ci": endpoint}):
        hooks.end_batch()
        wait_until(lambda: read_log(client), 10, "it was tried")
    assert connects == []
    result, reason = read_log(client)[0]
    assert result == "failed"
    assert reason.startswith(f"the receiver's address {address} is ")


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    hooks: Hooks, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS that says another address at the second question has no effect: there is none."""
    questions: list[str] = []
    real = socket.getaddrinfo

    def ask(host: str, *more: Any, **kinds: Any) -> Any:
        if host == "receiver.example":
            questions.append(host)
            host = "127.0.0.1" if len(questions) == 1 else "127.0.0.2"
        return real(host, *more, **kinds)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    with open_receiver() as receiver:
        endpoint = hooks.endpoint(receiver.port, url=f"http://receiver.example:{receiver.port}/hook")
        with hooks.sender({"ci": endpoint}):
            hooks.end_batch()
            wait_until(lambda: read_log(client), 10, "it is delivered")
    assert questions == ["receiver.example"]
    assert receiver.received[0].headers["host"] == f"receiver.example:{receiver.port}"


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_certificate_is_verified_for_the_name_of_the_url(
    hooks: Hooks,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_trusted: bool,
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost" if is_trusted else "other.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # it is ignored
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with open_receiver(tls=context) as receiver:
        url = f"https://localhost:{receiver.port}/hook"
        endpoint = hooks.endpoint(receiver.port, url=url, ca_file=str(tmp_path / "ca.pem"))
        with hooks.sender({"ci": endpoint}):
            hooks.end_batch()
            wait_until(lambda: read_log(client), 10, "it was tried")
    result, reason = read_log(client)[0]
    assert result == ("delivered" if is_trusted else "failed")
    assert is_trusted or "CERTIFICATE_VERIFY_FAILED" in reason.upper()


def test_an_unknown_endpoint_becomes_a_dead_letter_that_says_so(
    hooks: Hooks, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with open_receiver() as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        hooks.end_batch("no-such")
        hooks.end_batch("ci")
        wait_until(lambda: len(read_log(client)) == 2, 10, "both are decided")
    assert (
        "dead",
        "there is no endpoint 'no-such' in the settings of the sender (SANDFLEET_WEB__ENDPOINTS)",
    ) in read_log(client)
    assert "there is no endpoint 'no-such'" in caplog.text
    assert len(receiver.received) == 1


def test_a_receiver_that_hangs_keeps_nobody_else_waiting(hooks: Hooks, client: Any) -> None:
    with open_receiver(hang) as slow, open_receiver() as quick:
        endpoints = {"slow": hooks.endpoint(slow.port), "ci": hooks.endpoint(quick.port)}
        with hooks.sender(endpoints, deadline_seconds=3, retry_seconds=0):
            for _ in range(6):
                hooks.end_batch("slow", count=1)
            started = time.monotonic()
            hooks.end_batch("ci", count=1)
            wait_until(lambda: quick.received, 10, "the other one is delivered")
            assert time.monotonic() - started < 2.5
        assert len(slow.received) <= 4
