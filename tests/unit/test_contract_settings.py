from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError
from sandfleet.fleet import Fleet, read_settings
from sandfleet_config.celery import celery_url, shared_options
from sandfleet_config.environment import check_environment
from sandfleet_config.settings import Settings, SettingsInvalid, WorkerSettings


def test_settings_are_read_from_the_environment_with_nested_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_REDIS_URL", "redis://:pw@host:1/2")
    monkeypatch.setenv("SANDFLEET_POLICY__MEMORY_BYTES", "1GiB")
    monkeypatch.setenv("SANDFLEET_POLICY__IMAGES", "python, sha256:*")
    monkeypatch.setenv("SANDFLEET_CONCURRENCY", "3")
    settings = WorkerSettings()
    assert settings.redis_dsn == "redis://:pw@host:1/2"
    assert settings.policy.memory_bytes == 1 << 30
    assert settings.policy.images == ("python", "sha256:*")
    assert settings.concurrency == 3
    assert read_settings().redis_dsn == settings.redis_dsn  # a worker's settings do not trouble a producer


def test_an_unknown_setting_is_an_error_with_a_hint() -> None:
    with pytest.raises(SettingsInvalid, match=r"SANDFLEET_REDIS_UR \(did you mean SANDFLEET_REDIS_URL\?\)"):
        check_environment({"SANDFLEET_REDIS_UR": "x"})


def test_an_unknown_setting_stops_a_fleet_that_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_QUEU", "x")
    with pytest.raises(SettingsInvalid, match="SANDFLEET_QUEUE"):
        Fleet()
    Fleet(Settings()).close()  # given settings are taken as they are


def test_a_bad_value_is_named_but_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_REDIS_URL", "http://:s3cret@host")
    monkeypatch.setenv("SANDFLEET_RESULT_TTL_SECONDS", "-5")
    with pytest.raises(SettingsInvalid) as caught:
        read_settings()
    assert "SANDFLEET_REDIS_URL" in str(caught.value)
    assert "SANDFLEET_RESULT_TTL_SECONDS" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("redis://user:s3cret@host:6379/0", "redis://host:6379/0"),
        ("unix://:s3cret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("unix:///run/redis.sock?db=1&password=s3cret", "unix:///run/redis.sock"),
    ],
)
def test_the_address_shows_no_password(dsn: str, shown: str) -> None:
    settings = Settings(redis_url=SecretStr(dsn))
    assert "s3cret" not in settings.redis_address
    assert settings.redis_address.replace("unix:/run", "unix:///run") == shown
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("dsn", "url"),
    [
        ("redis://:pw@host:1/2", "redis://:pw@host:1/2"),
        ("unix:///run/r.sock", "redis+socket:///run/r.sock?virtual_host=0"),
        ("unix:///run/r.sock?db=3", "redis+socket:///run/r.sock?virtual_host=3"),
        ("unix://:p%40w@/run/r.sock?db=3", "redis+socket://:p%40w@/run/r.sock?virtual_host=3"),
        ("unix:///run/r.sock?password=p%40w&username=me", "redis+socket://me:p%40w@/run/r.sock?virtual_host=0"),
    ],
)
def test_celery_gets_the_url_in_its_own_form(dsn: str, url: str) -> None:
    assert celery_url(dsn) == url
    options = shared_options(Settings(redis_url=SecretStr(dsn)))
    assert options["broker_url"] == options["result_backend"] == url


def test_a_queue_may_not_be_called_like_another_key() -> None:
    for name in ("sandfleet", "gpu-2.eu", "Q"):
        assert Settings(queue=name).queue == name
    for name in (
        "",
        "a:b",
        "a b",
        "wake",
        "dead",
        "unacked_index",
        "celery-task-meta-1",
        "x.reply.celery.pidbox",
        "q" * 129,
    ):
        with pytest.raises(ValidationError, match="queue"):
            Settings(queue=name)
