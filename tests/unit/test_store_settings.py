"""Settings of the store: where it is, and what of them may be seen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import SecretStr, ValidationError
from sandfleet.fleet import read_settings
from sandfleet_config.settings import Settings, SettingsInvalid
from sandfleet_config.store import open_store
from sandfleet_config.store.folder import FolderStore
from sandfleet_config.store.redis_store import RedisStore
from sandfleet_config.store_settings import StoreSettings

SECRETS = {"access_key_id": SecretStr("PLANTED-KEY"), "secret_access_key": SecretStr("PLANTED-SECRET")}


def new_bucket(**fields: str) -> StoreSettings:
    """Return settings with credentials."""
    return StoreSettings.model_validate(SECRETS | fields)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "must start with file:///, s3:// or redis:"),
        ("/srv/store", "must start with"),
        ("s3://user:PLANTED@bucket", "no user, password"),
        ("s3://bucket?secret=PLANTED", "no user, password"),
        ("s3:///prefix", "must name a bucket"),
        ("redis://host:6379/1", "must be redis:, without an address"),
        ("file://srv/store", "must be file:// and an absolute path"),
        ("file:///", "must be file:// and an absolute path"),
        ("s3://bucket", "SANDFLEET_STORE__ACCESS_KEY_ID and SANDFLEET_STORE__SECRET_ACCESS_KEY; credentials are taken"),
    ],
)
def test_a_url_that_cannot_work_is_refused_and_not_repeated(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDFLEET_STORE__URL", url)
    with pytest.raises(SettingsInvalid, match="SANDFLEET_STORE") as caught:
        read_settings()
    assert said in str(caught.value)
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["host:9000", "ftp://host", "http://user:PLANTED@host", "http://"])
def test_an_endpoint_is_an_address_without_a_password(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="must be http:// or https://") as caught:
        StoreSettings(endpoint=endpoint)
    assert "PLANTED" not in str(caught.value)


def test_credentials_show_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_bucket(url="s3://bucket/prefix")
    settings = Settings(store=store)
    for shown in (
        repr(store),
        str(store),
        repr(settings),
        store.model_dump_json(),
        repr(open_store(settings, redis.Redis())),
    ):
        assert "PLANTED" not in shown
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(
            {"store": {"url": "s3:///", "secret_access_key": "PLANTED", "access_key_id": "PLANTED"}}
        )
    assert "PLANTED" not in str(caught.value)
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"store": {"url": "s3://bucket", "secret_access_key": "PLANTED"}})
    assert "PLANTED" not in str(caught.value)


def test_the_store_is_the_one_of_the_settings(tmp_path: Path) -> None:
    client = redis.Redis()
    assert isinstance(open_store(Settings(local_dir=tmp_path), client), RedisStore)
    assert isinstance(open_store(Settings(store=StoreSettings(url="redis:")), client), RedisStore)
    folder = open_store(Settings(store=StoreSettings(url="file:///srv/a%20b")), client)
    assert isinstance(folder, FolderStore)
    assert folder.name == "the store /srv/a b"
    bucket = open_store(Settings(store=new_bucket(url="s3://b/p", endpoint="http://h:1")), client)
    assert bucket.name == "the store s3://b/p at http://h:1"


def test_the_local_stack_has_its_folder_for_those_who_use_its_redis(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert Settings(local_dir=tmp_path).store_url == "redis:", "the stack does not run"
    (tmp_path / "redis.sock").touch()
    assert Settings(local_dir=tmp_path).store_url == f"file://{tmp_path}/store"
    own = SecretStr(f"unix://{tmp_path}/redis.sock?db=0")
    assert Settings(local_dir=tmp_path, redis_url=own).store_url == f"file://{tmp_path}/store"
    assert Settings(local_dir=tmp_path, redis_url=SecretStr("redis://host")).store_url == "redis:"
    given = Settings(local_dir=tmp_path, store=StoreSettings(url="redis:"))
    assert given.store_url == "redis:"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore" or name.endswith("store.bucket")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SettingsInvalid, match=r"pip install 'sandfleet\[stores\]'"):
        open_store(Settings(store=new_bucket(url="s3://bucket")), redis.Redis())


def test_a_ca_file_that_is_not_there_is_named() -> None:
    settings = Settings(store=new_bucket(url="s3://bucket", ca_file="/no/such.pem"))
    with pytest.raises(SettingsInvalid, match=r"SANDFLEET_STORE__CA_FILE: /no/such.pem: No such file"):
        open_store(settings, redis.Redis())


@pytest.mark.parametrize("url", ["az://container/prefix", "gs://bucket"])
def test_other_clouds_need_explicit_credentials_too(url: str) -> None:
    with pytest.raises(ValidationError, match="credentials are taken from nowhere else"):
        StoreSettings(url=url)


def test_values_have_bounds() -> None:
    bad: list[dict[str, Any]] = [{"timeout_seconds": 0}, {"deadline_seconds": -1}, {"redis_bytes": -1}, {"other": 1}]
    for fields in bad:
        with pytest.raises(ValidationError):
            StoreSettings.model_validate(fields)
    assert StoreSettings(redis_bytes="1GiB").redis_bytes == 1 << 30  # type: ignore[arg-type]
