"""Uploads to real stores: sent once, complete or not there, kept while jobs need them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from s3_server import run_s3_server
from sandfleet import Fleet, FleetUnavailable, SandboxSpec, Settings, SpecInvalid, SpecTooLarge
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.store_settings import StoreSettings
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from s3_server import S3Server

MIB = 1 << 20
SMALL_FILES = 20
REFUSED = 7
UPLOAD = "import sys; from sandfleet import Fleet; fleet = Fleet(); print(len(fleet.upload_many(sys.argv[1:])))"


@pytest.fixture(autouse=True)
def _own_keys(redis_server: Any) -> Iterator[None]:
    """Delete what the tests leave queued, and the store's keys."""
    yield
    for pattern in ("store:*", "job:*", "batch:*", "sandfleet*", "queues", "expiring"):
        for key in redis_server.client.scan_iter(f"{KEY_PREFIX}{pattern}"):
            redis_server.client.delete(key)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    with run_s3_server() as server:
        yield server


class Place:
    """A store on disk, whose complete objects are files.

    `settings` are for a producer, `environment` for its process.
    """

    def __init__(self, redis_url: str, store: dict[str, str], folder: Path) -> None:
        self.settings = Settings(redis_url=SecretStr(redis_url), store=StoreSettings.model_validate(store))
        self.environment = {"PATH": os.environ["PATH"], "SANDFLEET_REDIS_URL": redis_url}
        self.environment |= {f"SANDFLEET_STORE__{name.upper()}": value for name, value in store.items()}
        self._folder = folder

    def list_objects(self) -> dict[str, int]:
        """Return the inode of each object by its sha256."""
        return {path.name: path.stat().st_ino for path in self._folder.glob("objects/*/*") if len(path.name) == 64}

    def read(self, sha256: str) -> bytes:
        return (self._folder / "objects" / sha256[:2] / sha256).read_bytes()

    def delete(self, sha256: str) -> None:
        (self._folder / "objects" / sha256[:2] / sha256).unlink()


@pytest.fixture
def folder(redis_server: Any, tmp_path: Path) -> Place:
    root = tmp_path / "store"
    root.mkdir()
    return Place(redis_server.url, {"url": f"file://{root}"}, root)


@pytest.fixture
def bucket(redis_server: Any, s3_server: S3Server) -> Place:
    store = s3_server.settings().model_dump(exclude_defaults=True)
    plain = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else str(value) for name, value in store.items()
    }
    return Place(redis_server.url, plain, s3_server.objects)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


def test_a_producer_that_is_killed_sends_only_what_was_not_complete(place: Place, tmp_path: Path) -> None:
    files = [tmp_path / f"small{number}" for number in range(SMALL_FILES)]
    for number, file in enumerate(files):
        file.write_bytes(os.urandom(64) * 1000 + bytes([number]))
    large = tmp_path / "large"
    large.write_bytes(os.urandom(MIB) * 160)
    names = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in (*files, large)}
    command = [sys.executable, "-c", UPLOAD, *map(str, [large, *files])]
    with subprocess.Popen(command, env=place.environment) as process:
        wait_until(lambda: len(place.list_objects()) >= SMALL_FILES // 2, 60, "some files are complete")
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    complete = place.list_objects()
    assert SMALL_FILES // 2 <= len(complete) <= SMALL_FILES
    for sha256 in complete:
        assert hashlib.sha256(place.read(sha256)).hexdigest() == sha256
    assert subprocess.run(command, env=place.environment, check=True, capture_output=True).stdout == b"21\n"
    found = place.list_objects()
    assert found.keys() == names.keys()
    assert {sha256: found[sha256] for sha256 in complete} == complete
    assert all(hashlib.sha256(place.read(sha256)).hexdigest() == sha256 for sha256 in names)


def test_a_thousand_jobs_share_an_input_of_100_mib(
    folder: Place, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data = tmp_path / "data"
    data.write_bytes(os.urandom(MIB) * 100)
    with Fleet(folder.settings) as fleet:
        started = time.monotonic()
        ref = fleet.upload(data)
        first = folder.list_objects()
        uploaded = time.monotonic()
        assert fleet.upload(data) == ref
        specs = [SandboxSpec(image="x", labels={"n": str(n)}, files=[ref.at("data")]) for n in range(1000)]
        submitted = time.monotonic()
        assert len(fleet.submit_many(specs)) == 1000
        ended = time.monotonic()
    assert folder.list_objects() == first
    record_property("seconds", (uploaded - started, submitted - uploaded, ended - submitted))


def test_an_object_is_kept_as_long_as_the_job_may_need_it(folder: Place, redis_server: Any) -> None:
    spec = SandboxSpec(image="x", queue_ttl=1000)
    with Fleet(folder.settings) as fleet:
        ref = fleet.upload(b"abc")
        fleet.submit(spec.model_copy(update={"files": (ref.at("a"),)}))
    wanted = spec.queue_ttl + folder.settings.result_ttl_seconds
    until = redis_server.client.zscore(f"{KEY_PREFIX}store:refs", ref.sha256) / 1000
    assert wanted - 1 <= until - time.time() <= max(wanted + 60, 86400)


def test_a_spec_whose_object_is_gone_is_refused(folder: Place) -> None:
    with Fleet(folder.settings) as fleet:
        ref = fleet.upload(b"abc")
        (object_file,) = [*(folder._folder.glob("objects/*/*"))]
        object_file.unlink()
        with pytest.raises(SpecInvalid, match=f"/work/a: .* has no object {ref.sha256}"):
            fleet.submit(SandboxSpec(image="x", files=[ref.at("a")]))


def test_large_contents_are_uploaded_by_submit(folder: Place) -> None:
    with Fleet(folder.settings) as fleet:
        shared = {"path": "a", "content": "x" * MIB}
        fleet.submit_many([{"image": "x", "labels": {"n": str(n)}, "files": [shared]} for n in range(100)])
    (sha256,) = folder.list_objects()
    assert folder.read(sha256) == b"x" * MIB


def test_redis_takes_small_files_where_there_is_no_other_store(redis_server: Any, tmp_path: Path) -> None:
    settings = Settings(redis_url=SecretStr(redis_server.url), local_dir=tmp_path)
    with Fleet(settings) as fleet:
        ref = fleet.upload(b"x" * MIB)
        fleet.submit(SandboxSpec(image="x", files=[ref.at("a")]))
        with fleet.download(ref) as file:
            assert file.read() == b"x" * MIB
        with pytest.raises(SpecTooLarge, match=r"takes 1 MiB at most.*SANDFLEET_STORE__URL"):
            fleet.upload(b"x" * (MIB + 1))


@pytest.mark.parametrize("is_used_before", [False, True])
def test_a_forked_child_uploads_or_is_told_why_it_cannot(place: Place, *, is_used_before: bool) -> None:
    with Fleet(place.settings) as fleet:
        fleet.ping()
        if is_used_before:
            fleet.upload(b"parent")
        pid = os.fork()
        if pid == 0:
            os._exit(_upload_in_child(fleet))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (REFUSED if is_used_before and place.settings.store.scheme == "s3" else 0)


def _upload_in_child(fleet: Fleet) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest's own handler would wait for a client that hangs
    signal.alarm(30)
    try:
        return 0 if fleet.upload(b"child").size == 5 else 1
    except FleetUnavailable as error:
        return REFUSED if "before this process was forked" in str(error) else 1
