"""``sandfleet store``, on a folder, and what is seen of credentials."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from s3_server import ACCESS_KEY, SECRET_KEY, new_environment
from sandfleet.cli import main
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.settings import Settings
from sandfleet_config.store import References, open_store
from sandfleet_config.store.folder import FolderStore
from store_kinds import sha_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from s3_server import S3Server

    Run = Callable[..., tuple[int, str, str]]

DAY = 86400


@pytest.fixture
def run(redis_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``sandfleet store`` and return (exit code, stdout, stderr)."""
    monkeypatch.setenv("SANDFLEET_REDIS_URL", redis_server.url)

    def run_store(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["store", *words])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Any) -> FolderStore:
    """A folder with an object that is kept and two that are not."""
    root = tmp_path / "store"
    root.mkdir()
    monkeypatch.setenv("SANDFLEET_STORE__URL", f"file://{root}")
    store = FolderStore(root)
    for data in (b"kept", b"old", b"older"):
        store.put_bytes(sha_of(data), data)
        os.utime(root / "objects" / sha_of(data)[:2] / sha_of(data), (time.time() - 2 * DAY,) * 2)
    References(client, store).keep([sha_of(b"kept")], DAY)
    return store


def test_usage_and_gc_say_what_there_is_and_what_goes(run: Run, store: FolderStore) -> None:
    code, out, _ = run("usage")
    assert code == 0
    assert "3 objects, 12 bytes" in out
    assert "2 objects, 8 bytes" in out
    assert store.name in out
    _, out, _ = run("usage", "--json")
    assert json.loads(out) == {
        "store": store.name,
        "objects": 3,
        "bytes": 12,
        "collectable_objects": 2,
        "collectable_bytes": 8,
    }
    code, out, err = run("gc", "--dry-run")
    assert {line.split("\t")[0] for line in out.splitlines()} == {sha_of(b"old"), sha_of(b"older")}
    assert "would delete 2 objects, 8 bytes; 1 object, 4 bytes kept" in err
    _, out, _ = run("gc", "--json")
    told = json.loads(out)
    assert (told["dry_run"], told["objects"], told["bytes"], told["kept_objects"]) == (False, 2, 8, 1)
    assert {item["sha256"] for item in told["deleted"]} == {sha_of(b"old"), sha_of(b"older")}
    assert [item.sha256 for item in store.list_objects()] == [sha_of(b"kept")]
    assert run("gc") == (0, "", "sandfleet: deleted 0 objects, 0 bytes; 1 object, 4 bytes kept\n")


def test_a_store_that_is_not_there_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_STORE__URL", f"file://{tmp_path}/not-mounted")
    code, out, err = run("gc")
    assert (code, out) == (125, "")
    assert err == (
        f"sandfleet: the store {tmp_path}/not-mounted is out of reach: the folder does not exist; make it, or mount what"
        " it is on\n"
    )


def test_credentials_are_nowhere_in_redis_logs_and_errors(
    run: Run, s3_server: S3Server, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in new_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG)
    settings = Settings()
    opened = open_store(settings, client)
    opened.put_bytes(sha_of(b"x"), b"x")
    References(client, opened).require([sha_of(b"x")], DAY)
    References(client, opened).pin(sha_of(b"x"), "image:python")
    seen = [repr(opened), opened.name, repr(settings), repr(vars(opened))]
    seen += [text for words in (("usage",), ("gc",), ("gc", "--json")) for text in run(*words)[1:]]
    s3_server.kill()
    seen += run("usage")[1:]
    assert "Connection refused" in seen[-1]
    s3_server.start()
    monkeypatch.setenv("SANDFLEET_STORE__SECRET_ACCESS_KEY", f"{SECRET_KEY}-wrong")
    seen += run("usage")[1:]
    assert "SignatureDoesNotMatch" in seen[-1]
    seen.append(caplog.text)
    for key in client.scan_iter(f"{KEY_PREFIX}store:*"):
        kind = client.type(key)
        values = (
            client.zrange(key, 0, -1)
            if kind == b"zset"
            else client.hgetall(key)
            if kind == b"hash"
            else client.get(key)
        )
        seen.append(repr((key, values)))
    for secret in (SECRET_KEY, ACCESS_KEY):
        assert not any(secret in text for text in seen)
