"""The endpoint of a worker's metrics: who may read it, and that nobody can hold it up."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from sandfleet_config.metrics_settings import MetricsSettings
from sandfleet_config.settings import SettingsInvalid
from sandfleet_worker.metrics import endpoint
from sandfleet_worker.metrics.counts import JobCounts
from sandfleet_worker.metrics.endpoint import MAX_REQUESTS, open_endpoint, read_token
from sandfleet_worker.metrics.families import WorkerGauges
from scrape import Scraped, ask, free_port

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "a-token-of-24-characters"


def serve(**fields: Any) -> contextlib.AbstractContextManager[None]:
    return open_endpoint(MetricsSettings(**fields), JobCounts(), WorkerGauges)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def test_metrics_are_off_by_default_and_on_loopback() -> None:
    settings = MetricsSettings()
    assert (settings.port, settings.address, settings.token_file) == (0, "127.0.0.1", None)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.7", "host-7", "::"])  # noqa: S104
def test_another_address_needs_a_token(address: str, token_file: Path) -> None:
    with pytest.raises(ValidationError, match="need SANDFLEET_METRICS__TOKEN_FILE"):
        MetricsSettings(port=9188, address=address)
    MetricsSettings(port=9188, address=address, token_file=token_file)
    MetricsSettings(port=0, address=address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(address: str) -> None:
    MetricsSettings(port=9188, address=address)


def test_only_the_token_reads_them(token_file: Path) -> None:
    port = free_port()
    with serve(port=port, token_file=token_file):
        assert "sandfleet_lease_margin_seconds" in Scraped.read(port, TOKEN).names
        for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", "\xe4"):
            status, body = ask(port, wrong)
            assert status == 401
            assert "sandfleet_" not in body
        assert ask(port, "", "/")[0] == 401
        assert ask(port, TOKEN, "/")[0] == 404
    with pytest.raises(OSError, match="refused"):
        ask(port, TOKEN)


def test_only_get_is_answered() -> None:
    port = free_port()
    with serve(port=port), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /metrics HTTP/1.0\r\n\r\n")
        assert b" 501 " in client.recv(200)


def test_ipv6() -> None:
    port = free_port()
    with serve(port=port, address="::1"):
        assert ask(port, host="[::1]")[0] == 200


def test_a_token_that_others_may_read_is_refused(token_file: Path) -> None:
    token_file.chmod(0o640)
    with pytest.raises(SettingsInvalid, match="chmod 600"):
        read_token(token_file)


@pytest.mark.parametrize("text", ["", "short", "two\nlines of the file", "x" * 5000])
def test_an_unusable_token_is_refused(token_file: Path, text: str) -> None:
    token_file.write_text(text)
    with pytest.raises(SettingsInvalid, match="one line of 16 characters"):
        read_token(token_file)


def test_a_missing_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="No such file"):
        read_token(tmp_path / "none")


def test_a_taken_port_is_named() -> None:
    port = free_port()
    with serve(port=port), pytest.raises(OSError, match="in use") as found, serve(port=port):
        pass
    assert found.value.filename == f"metrics at 127.0.0.1:{port}"


def test_silent_clients_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint._Handler, "timeout", 0.3)
    port = free_port()
    with serve(port=port), contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(MAX_REQUESTS)]
        time.sleep(0.1)
        assert ask(port)[0] == 503, "all places are taken"
        for client in silent:
            assert client.recv(10) == b""
        assert ask(port)[0] == 200
