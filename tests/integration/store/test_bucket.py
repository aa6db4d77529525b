"""A bucket of a real S3 server: credentials, faults, large objects."""

from __future__ import annotations

import filecmp
import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bad_servers import run_old_server, run_silent_server
from pydantic import SecretStr
from s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, WeedServer, new_environment, run_s3_server
from sandfleet_config.store.bucket import SINGLE_BYTES, BucketStore
from sandfleet_config.store.protocol import ObjectDamaged, ObjectMissing, StoreDown
from store_kinds import sha_of
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3_server import S3Server

MIB = 1 << 20
LARGE_BYTES = int(os.environ.get("TEST_STORE_BYTES", "100000000"))
DATA = b"an object"
NAME = sha_of(DATA)
SUPPORT = Path(__file__).parents[2] / "support"


def every_call(store: BucketStore, folder: Path) -> list[Callable[[], object]]:
    """Return a call of each method."""
    (folder / "source").write_bytes(DATA)
    return [
        lambda: store.put_bytes(NAME, DATA),
        lambda: store.put_file(NAME, folder / "source"),
        lambda: list(store.read(NAME)),
        lambda: store.fetch(NAME, folder / "target"),
        lambda: store.size_of(NAME),
        lambda: store.find_missing([NAME, "a" * 64]),
        lambda: list(store.list_objects()),
        lambda: store.delete(NAME),
        store.read_clock,
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"secret_access_key": SecretStr("wrong-s3cret")}, "refuses"),
        ({"access_key_id": SecretStr("WRONGKEYID")}, "refuses"),
        ({"url": "s3://nobucket/prefix"}, "there is no such bucket: make it, or correct SANDFLEET_STORE__URL"),
    ],
)
def test_wrong_credentials_and_a_wrong_bucket_are_told_by_every_call(
    s3_server: S3Server, fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    if "url" in fields and isinstance(s3_server, WeedServer):
        pytest.skip("SeaweedFS makes a bucket that is missing: needs versitygw")
    BucketStore(s3_server.settings()).put_bytes(NAME, DATA)
    for call in every_call(BucketStore(s3_server.settings(**fields)), tmp_path):
        with pytest.raises(StoreDown, match=said) as caught:
            call()
        for secret in ("s3cret", "WRONGKEYID", ACCESS_KEY, SECRET_KEY):
            assert secret not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_wrong_key_is_named_as_the_reason(s3_server: S3Server) -> None:
    store = BucketStore(s3_server.settings(secret_access_key=SecretStr("wrong")))
    with pytest.raises(StoreDown, match=r"SignatureDoesNotMatch.*SANDFLEET_STORE__SECRET_ACCESS_KEY"):
        store.put_bytes(NAME, DATA)


def test_variables_of_other_tools_change_nothing(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "other",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_SESSION_TOKEN": "other",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_ENDPOINT": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_BUCKET": "other",
        "AWS_REGION": "eu-west-1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    }.items():
        monkeypatch.setenv(name, value)
    store = BucketStore(s3_server.settings())
    assert store.put_bytes(NAME, DATA)
    assert b"".join(store.read(NAME)) == DATA


def test_a_server_without_conditional_writes_is_asked_before_each(s3_server: S3Server) -> None:
    with run_old_server(s3_server.port) as (port, seen):
        store = BucketStore(s3_server.settings(endpoint=f"http://127.0.0.1:{port}"))
        assert store.put_bytes(NAME, DATA)
        assert not store.put_bytes(NAME, DATA)
        other = sha_of(b"other")
        assert store.put_bytes(other, b"other")
        assert b"".join(store.read(NAME)) == DATA
        assert store.size_of(other) == 5
    assert sum(NAME in path for path in seen.refused) == len(seen.refused), "the second object was sent without"
    assert sum("PUT" in request and NAME in request for request in seen.passed) == 1


def test_a_store_that_is_down_is_told_soon_and_works_when_it_is_back(s3_server: S3Server, tmp_path: Path) -> None:
    store = BucketStore(s3_server.settings())
    store.put_bytes(NAME, DATA)
    s3_server.kill()
    for call in every_call(store, tmp_path):
        began = time.monotonic()
        with pytest.raises(StoreDown, match="Connection refused"):
            call()
        assert time.monotonic() - began < 10
    s3_server.start()
    assert not store.put_bytes(NAME, DATA)
    assert b"".join(store.read(NAME)) == DATA


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, s3_server: S3Server) -> None:
    with run_silent_server() as port:
        store = BucketStore(s3_server.settings(endpoint=f"http://127.0.0.1:{port}", timeout_seconds=0.5))
        began = time.monotonic()
        for call in every_call(store, tmp_path)[:5]:
            with pytest.raises(StoreDown, match="does not answer in time"):
                call()
        assert time.monotonic() - began < 15


def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    with run_s3_server(is_tls=True) as server:
        with pytest.raises(
            StoreDown, match=r"certificate is not valid \(UnknownIssuer\): see SANDFLEET_STORE__CA_FILE"
        ):
            BucketStore(server.settings()).put_bytes(NAME, DATA)
        store = BucketStore(server.settings(ca_file=str(server.ca_file)))
        assert store.put_bytes(NAME, DATA)
        assert b"".join(store.read(NAME)) == DATA


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A file of 100 MB or more, and its name in the store."""
    path = tmp_path_factory.mktemp("large") / "file"
    digest, left = hashlib.sha256(), LARGE_BYTES
    with path.open("wb") as file:
        while left:
            chunk = os.urandom(min(left, MIB))
            digest.update(chunk)
            left -= file.write(chunk)
    return digest.hexdigest(), path


def test_a_large_object_is_uploaded_in_parts_and_fetched(
    s3_server: S3Server, large: tuple[str, Path], tmp_path: Path
) -> None:
    name, path = large
    store = BucketStore(s3_server.settings())
    assert store.put_file(name, path)
    assert not store.put_file(name, path)
    store.fetch(name, tmp_path / "target")
    assert filecmp.cmp(tmp_path / "target", path, shallow=False)


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_memory_does_not_grow_with_an_object(
    s3_server: S3Server, large: tuple[str, Path], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    environment = new_environment(s3_server) if kind == "s3" else {"SANDFLEET_STORE__URL": f"file://{tmp_path}/store"}
    environment["PYTHONPATH"] = str(SUPPORT)
    command = [sys.executable, str(SUPPORT / "store_memory.py"), large[0], str(large[1]), str(tmp_path / "target")]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    upload, fetch = map(int, printed.split())
    assert upload < 48, printed
    assert fetch < 24, printed


def test_a_store_killed_in_the_middle_of_an_upload_shows_no_object(
    s3_server: S3Server, large: tuple[str, Path]
) -> None:
    if isinstance(s3_server, WeedServer):
        pytest.skip("SeaweedFS shows no parts: needs versitygw")
    name, path = large
    store = BucketStore(s3_server.settings())
    parts = s3_server.folder / BUCKET / ".sgwtmp" / "multipart"

    def kill_soon() -> None:
        wait_until(lambda: sum(part.is_file() for part in parts.rglob("*")) >= 2, 30, "two parts are there")
        s3_server.kill()

    killer = threading.Thread(target=kill_soon)
    killer.start()
    with pytest.raises(StoreDown):
        store.put_file(name, path)
    killer.join()
    s3_server.start()
    assert store.size_of(name) is None
    assert list(store.list_objects()) == []
    assert store.put_file(name, path)
    assert store.size_of(name) == path.stat().st_size


def test_a_store_killed_in_the_middle_of_a_download_leaves_no_file(
    s3_server: S3Server, large: tuple[str, Path], tmp_path: Path
) -> None:
    name, path = large
    store = BucketStore(s3_server.settings())
    store.put_file(name, path)
    chunks = store.read(name)
    next(chunks)
    s3_server.kill()
    with pytest.raises(StoreDown):
        list(chunks)
    s3_server.start()
    if isinstance(s3_server, WeedServer):
        pytest.skip("SeaweedFS serves no data for a while after its start: the rest needs versitygw")

    def kill_soon() -> None:
        wait_until(lambda: any(found.stat().st_size for found in tmp_path.iterdir()), 30, "the fetch has begun")
        s3_server.kill()

    killer = threading.Thread(target=kill_soon)
    killer.start()
    with pytest.raises(StoreDown):
        store.fetch(name, tmp_path / "target")
    killer.join()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_during_its_upload_is_not_stored(s3_server: S3Server, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a" * (SINGLE_BYTES + 1))
    name = sha_of(source.read_bytes())
    source.write_bytes(b"a" * SINGLE_BYTES + b"b")
    store = BucketStore(s3_server.settings())
    with pytest.raises(ObjectDamaged, match="changed during the upload"):
        store.put_file(name, source)
    source.write_bytes(b"a" * SINGLE_BYTES)
    with pytest.raises(ObjectDamaged):
        store.put_file(name, source)
    assert store.size_of(name) is None
    with pytest.raises(ObjectMissing):
        list(store.read(name))


FORKED = """
import os, sys
from sandfleet_config.settings import Settings
from sandfleet_config.store import StoreDown, open_store
store = open_store(Settings(), None)
print(store.put_bytes(sys.argv[1], sys.argv[2].encode()), flush=True)
if os.fork() == 0:
    try:
        store.size_of(sys.argv[1])
    except StoreDown as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


def test_a_forked_child_gets_an_error_instead_of_hanging(s3_server: S3Server) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, NAME, DATA.decode()]
    done = subprocess.run(
        command, env=new_environment(s3_server), check=True, capture_output=True, text=True, timeout=60
    )
    first, second = done.stdout.splitlines()
    assert first == "True"
    assert "this process was forked after its parent had used a bucket" in second
