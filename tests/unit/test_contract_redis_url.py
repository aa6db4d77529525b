"""URLs of Redis in the settings: sentinels, TLS, and what each part makes of them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from sandfleet_config.celery import celery_url, shared_options
from sandfleet_config.redis_client import FailoverRetry
from sandfleet_config.redis_url import parse_sentinel_url
from sandfleet_config.settings import Settings, WorkerSettings
from sandfleet_worker.app import worker_options

SENTINELS = "sentinel://me:p%40ss@one.example,two.example:26380,[::1]:26381/fleet/3?sentinel_password=s"


def read(url: str, **redis: object) -> Settings:
    return Settings.model_validate({"redis_url": url, "redis": redis})


def test_sentinels_are_read_with_all_their_parts() -> None:
    found = parse_sentinel_url(SENTINELS)
    assert found.addresses == (("one.example", 26379), ("two.example", 26380), ("::1", 26381))
    assert (found.service, found.db, found.username, found.password) == ("fleet", 3, "me", "p@ss")
    assert (found.sentinel_password, found.uses_tls) == ("s", False)
    assert parse_sentinel_url("sentinels://h/fleet").uses_tls


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://:hunter2@host:26379",
        "sentinel://:hunter2@host:26379/",
        "sentinel://:hunter2@host:26379/fleet/zero",
        "sentinel://:hunter2@host:port/fleet/0",
        "sentinel://:hunter2@/fleet/0",
        "sentinel://:hunter2@host,,other/fleet/0",
        "sentinel://:hunter2@host/fleet/0?db=1",
        "sentinel://:hunter2@host/fleet/0/more",
    ],
)
def test_another_form_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError, match="must be sentinel://") as caught:
        read(url)
    assert "hunter2" not in str(caught.value)


def test_messages_name_sentinels_without_passwords() -> None:
    assert read(SENTINELS).redis_address == "sentinel://one.example:26379,two.example:26380,[::1]:26381/fleet/3"


def test_celery_gets_one_url_a_sentinel() -> None:
    url = "sentinel://me:p%40ss@one.example:26379/3;sentinel://me:p%40ss@two.example:26380/3;sentinel://me:p%40ss@[::1]:26381/3"
    assert celery_url(SENTINELS) == url
    options = shared_options(read(SENTINELS))
    assert options["broker_transport_options"]["master_name"] == "fleet"
    assert options["broker_transport_options"]["global_keyprefix"] == "sandfleet:"
    assert options["result_backend_transport_options"]["sentinel_kwargs"]["password"] == "s"
    assert "broker_use_ssl" not in options


def test_a_worker_gets_the_backend_of_its_redis() -> None:
    for url, name in (
        ("redis://h/0", "ClaimsBackend+redis://h/0"),
        ("sentinel://h/fleet", "SentinelClaimsBackend+sentinel://h:26379/0"),
    ):
        options = worker_options(WorkerSettings.model_validate({"redis_url": url}))
        assert options["result_backend"] == f"sandfleet_worker.celery_worker.backend:{name}"


@pytest.mark.parametrize("url", ["rediss://h/0", "sentinels://h/fleet"])
def test_tls_always_checks_the_certificate(url: str) -> None:
    options = shared_options(read(url, ca_file="/ca", cert_file="/cert", key_file="/key"))
    assert options["broker_use_ssl"] == options["redis_backend_use_ssl"]
    assert options["broker_use_ssl"]["ssl_cert_reqs"].name == "CERT_REQUIRED"
    assert options["broker_use_ssl"]["ssl_ca_certs"] == "/ca"


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValidationError, match="go together"):
        read("rediss://h/0", cert_file="/cert")


def test_a_replica_is_waited_for_with_sentinels_unless_it_is_said_otherwise() -> None:
    assert read("redis://h/0").replicas == 0
    assert read("sentinel://h/fleet").replicas == 1
    assert read("sentinel://h/fleet", replicas=0).replicas == 0
    assert read("redis://h/0", replicas=2).replicas == 2


def test_a_fail_over_is_waited_for_by_the_clock_and_not_twice_over() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ConnectionError

    retry = FailoverRetry(0.3)
    retry.update_supported_errors([ConnectionError])
    with pytest.raises(ConnectionError):
        retry.call_with_retry(lambda: retry.call_with_retry(fail, lambda _: None), lambda _: None)
    assert 2 <= len(calls) <= 10
    calls.clear()
    with pytest.raises(ConnectionError):
        FailoverRetry(0).call_with_retry(fail, lambda _: None)
    assert len(calls) == 1
