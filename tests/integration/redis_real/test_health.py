"""The health check of the worker's container reaches Redis as its worker does: over TLS, by sentinels."""

from __future__ import annotations

import runpy
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.pidbox import Mailbox
from redis_servers import PASSWORD, Cluster, Server, TlsFiles, find_ports
from sandfleet_config.celery import shared_options
from sandfleet_config.settings import Settings
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECK = Path(__file__).parents[3] / "docker" / "worker_health.py"


@pytest.fixture(params=["password", "tls", "sentinels", "sentinels over tls"])
def url(
    request: pytest.FixtureRequest, tls: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of a Redis; the environment is that of its worker."""
    files = tls if "tls" in request.param else None
    if files:
        for name, path in (("CA", files.ca), ("CERT", files.client_cert), ("KEY", files.client_key)):
            monkeypatch.setenv(f"SANDFLEET_REDIS__{name}_FILE", str(path))
    monkeypatch.setenv("SANDFLEET_DRAIN_SECONDS", "60")
    if "sentinels" in request.param:
        with Cluster(tmp_path, files) as cluster:
            yield cluster.url
        return
    server = Server(tmp_path / "redis", find_ports(1)[0], ["--requirepass", PASSWORD, "--save", ""], tls=files)
    server.start()
    try:
        yield f"redis{'s' if files else ''}://:{PASSWORD}@127.0.0.1:{server.port}/0"
    finally:
        server.kill()


@contextmanager
def answering(url: str, host: str) -> Iterator[None]:
    """Answer pings as a worker on `host` does."""
    options = shared_options(Settings.model_validate({"redis_url": url}))
    stopping = threading.Event()
    with Connection(
        options["broker_url"],
        ssl=options.get("broker_use_ssl", False),
        transport_options=options["broker_transport_options"],
    ) as connection:
        mailbox: Any = Mailbox("celery", type="fanout", accept=["json"])
        node = mailbox(connection).Node(f"worker@{host}", handlers={"ping": lambda _state, **_: {"ok": "pong"}})

        def serve() -> None:
            with node.listen(channel=connection.channel()):
                while not stopping.is_set():
                    try:
                        connection.drain_events(timeout=0.2)
                    except TimeoutError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


def test_a_redis_with_a_certificate_of_others_gets_no_password(
    tls: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    other = TlsFiles.make(tmp_path / "other")
    options = ["--requirepass", PASSWORD, "--save", "", "--tls-auth-clients", "no"]
    server = Server(tmp_path / "redis", find_ports(1)[0], options, tls=tls)
    server.start()
    try:
        url = f"rediss://:{PASSWORD}@127.0.0.1:{server.port}/0"
        monkeypatch.setenv("SANDFLEET_REDIS_URL", url)
        monkeypatch.setenv("SANDFLEET_REDIS__CA_FILE", str(other.ca))
        with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
            runpy.run_path(str(CHECK))["is_answering"](url, "host-07")
    finally:
        server.kill()


def test_a_worker_that_answers_is_well_and_another_is_not(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_REDIS_URL", url)
    check = runpy.run_path(str(CHECK))
    is_answering: Any = check["is_answering"]
    is_answering.__globals__["REPLY_SECONDS"] = 2
    with answering(url, "host-07"):
        wait_until(lambda: is_answering(url, "host-07"), 30, "the worker listens and answers")
        assert not is_answering(url, "host-08")
