"""Taking shared images without a fleet: what is believed and kept; how often the store is asked."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from imagetools import new_tree
from rows import each_row
from sandfleet_config.errors import Cancelled, ImageInvalid, ImageNotFound, ImageUnavailable, SandboxError
from sandfleet_config.settings import ImagesSettings
from sandfleet_worker.cli import main
from sandfleet_worker.sandbox.image.finder import ImageFinder
from sandfleet_worker.sandbox.image.shared import publish
from sandfleet_worker.sandbox.image.shared_facts import SharedFacts, digest_of
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.start_hooks import NoHooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandfleet_worker.sandbox.image.image import Image


def go_on() -> None:
    """Raise nothing."""


class Shared:
    """Names and objects in memory; `before_read` is called before each read and may raise."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.before_read: Callable[[], object] = go_on

    def find(self, name: str) -> str:
        return self.names.get(name, "")

    def was_shared(self, name: str, digest: str) -> bool:
        return self.names.get(name) == digest

    def read(self, sha256: str) -> Iterator[bytes]:
        self.reads.append(sha256)
        self.before_read()
        if sha256 not in self.objects:
            raise ImageNotFound.of(f"no object {sha256}")
        data = self.objects[sha256]
        yield from (data[at : at + 65536] for at in range(0, len(data), 65536))

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.objects[sha256] = data
        return sha256

    def push(self, image: Image, **changes: Any) -> str:
        """Share an image with facts that are changed so."""
        self.put(image.erofs_path.read_bytes())
        facts = json.loads(SharedFacts.of(image).encode()) | changes
        self.names[image.name] = f"sha256:{self.put(json.dumps(facts).encode())}"
        return self.names[image.name]


class Host:
    """A host that takes shared images; `take` returns the image as a job would find it."""

    def __init__(self, root: Path, shared: Shared, *patterns: str, **settings: Any) -> None:
        self.store = ImageStore(root)
        fields: dict[str, Any] = {"root": root, "shared": patterns or ("*",)} | settings
        self.finder = ImageFinder(self.store, ImagesSettings(**fields), shared)

    def take(self, name: str = "app", check: Callable[[], None] = go_on) -> Image:
        with self.finder.hold(name, NoHooks(), check) as image:
            return image


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """An image of another host."""
    return ImageStore(tmp_path / "other").add("app", f"rootfs:{new_tree(tmp_path / 'tree')}")


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_a_taken_image_is_the_pushed_one_and_goes_when_there_is_no_room(
    tmp_path: Path, image: Image, shared: Shared
) -> None:
    shared.names["app"] = digest = f"sha256:{shared.put(SharedFacts.of(image).encode())}"
    shared.put(image.erofs_path.read_bytes())
    host = Host(tmp_path / "store", shared)
    taken = host.take()
    same = {"digest", "source", "created", "erofs_path"}
    assert taken.model_dump(exclude=same) == image.model_dump(exclude=same)
    assert (taken.digest, taken.source) == (digest, "shared:app")
    host.store.verify(taken)
    assert (host.take(), len(shared.reads)) == (taken, 2)
    assert [found.digest for found in host.finder.cache.list_evictable()] == [digest]
    assert publish(ImageStore(tmp_path / "other"), image) == digest
    assert host.finder.cache.clear() == [digest]
    assert host.take(f"app@{digest}").digest == digest
    with pytest.raises(ImageInvalid, match="SANDFLEET_IMAGES__MAX_BYTES"):
        Host(tmp_path / "small", shared, max_bytes=1).take()


def test_publishing_takes_no_disk_and_keeps_the_earlier_digest(tmp_path: Path, image: Image) -> None:
    store = ImageStore(tmp_path / "other")
    digest = publish(store, image)
    assert digest == digest_of(SharedFacts.of(image).encode())
    published = store.resolve("app")
    assert published.digest == digest
    assert store.resolve(image.digest).erofs_path.samefile(published.erofs_path)
    assert publish(store, published) == digest
    store.remove("app")
    assert [found.digest for found in store.list()] == [image.digest]


def test_publishing_leaves_a_name_that_means_another_image_by_now(tmp_path: Path, image: Image) -> None:
    """A push of many GB takes its time, and somebody may add the next image meanwhile."""
    store = ImageStore(tmp_path / "other")
    newer = store.add("app", f"rootfs:{new_tree(tmp_path / 'newer', 'newer')}")
    assert publish(store, image) == newer.digest
    assert store.resolve("app").digest == newer.digest


def test_the_list_shows_by_which_name_an_image_was_fetched(
    tmp_path: Path, image: Image, shared: Shared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared.push(image)
    Host(tmp_path / "store", shared).take()
    monkeypatch.setenv("SANDFLEET_IMAGES__ROOT", str(tmp_path / "store"))
    with pytest.raises(SystemExit):
        main(["images", "list"])
    assert "shared:app" in capsys.readouterr().out


def test_an_image_that_was_just_fetched_is_not_removed_to_make_room(
    tmp_path: Path, image: Image, shared: Shared
) -> None:
    digest = shared.push(image)
    host = Host(tmp_path / "store", shared, disk_high_percent=1)
    assert host.take().digest == digest
    assert len(shared.reads) == 2


@each_row(
    ("changes", "text"),
    [
        ({"size_bytes": 1}, "has more than 1 byte"),
        ({"size_bytes": 1 << 30}, "its facts say 1073741824"),
        ({"size_bytes": 1 << 40}, "the fixed limit"),
        ({"erofs_sha256": hashlib.sha256(b"").hexdigest()}, "has 0 bytes"),
        ({"directories": ["/usr"]}, "its directories"),
    ],
)
def test_forged_facts_are_refused_and_nothing_is_left(
    tmp_path: Path, image: Image, shared: Shared, changes: dict[str, Any], text: str
) -> None:
    shared.put(b"")
    shared.push(image, **changes)
    host = Host(tmp_path / "store", shared)
    with pytest.raises(ImageInvalid, match=text):
        host.take()
    assert host.store.list() == []
    assert list((tmp_path / "store").rglob("*.erofs")) == []


def test_objects_of_another_digest_are_refused(tmp_path: Path, image: Image, shared: Shared) -> None:
    digest = shared.push(image)
    facts = digest.removeprefix("sha256:")
    host = Host(tmp_path / "store", shared)
    for sha256 in (facts, image.erofs_sha256):
        data = shared.objects[sha256]
        shared.objects[sha256] = data[:-1] + bytes([data[-1] ^ 1])
        with pytest.raises(ImageInvalid, match=f"object {sha256} was altered"):
            host.take()
        assert host.store.list() == []
        shared.objects[sha256] = data
    shared.names["app"] = f"sha256:{shared.put(b'x' * (5 << 20))}"
    with pytest.raises(ImageInvalid, match="has more than 4 MiB"):
        host.take()


def test_a_shared_image_never_takes_the_place_of_another(tmp_path: Path, image: Image, shared: Shared) -> None:
    """Redis says that a name is another image's digest: the store has no facts of that digest."""
    host = Host(tmp_path / "store", shared)
    own = host.store.add("own", f"rootfs:{new_tree(tmp_path / 'own', 'own')}")
    shared.push(image)
    shared.names |= {"own": shared.names["app"], "victim": own.digest}
    assert host.take("own").digest == own.digest, "the host's own image outranks a shared one"
    with pytest.raises(ImageNotFound, match="no object"):
        host.take("victim")
    pinned = f"app@sha256:{image.erofs_sha256}"
    with pytest.raises(ImageNotFound, match="the fleet has not shared it"):
        host.take(pinned)
    with pytest.raises(ImageInvalid, match="its facts cannot be read"):
        Host(tmp_path / "store", shared, pinned).take(pinned)
    with pytest.raises(ImageNotFound, match="no image sha256"):
        host.take(shared.names["app"])
    assert {found.digest for found in host.store.list()} == {own.digest}


def test_what_a_host_does_not_list_is_not_read(tmp_path: Path, image: Image, shared: Shared) -> None:
    digest = shared.push(image)
    for patterns in (("other",), (f"app@sha256:{'0' * 64}",)):
        host = Host(tmp_path / "store", shared, *patterns)
        with pytest.raises(ImageNotFound, match=f"add app or app@{digest} to SANDFLEET_IMAGES__SHARED"):
            host.take()
        with pytest.raises(ImageNotFound):
            host.take(f"app@{digest}")
    assert shared.reads == []
    assert Host(tmp_path / "store", shared, f"app@{digest}").take().digest == digest


def test_a_digest_that_nobody_has_shared_is_taken_only_if_the_host_lists_it(
    tmp_path: Path, image: Image, shared: Shared
) -> None:
    """Every producer may upload files: one of them names the digest of such a file in a spec."""
    digest = shared.push(image)
    del shared.names["app"]
    with pytest.raises(ImageNotFound, match="the fleet has not shared it in the last two days"):
        Host(tmp_path / "store", shared, "app", "*").take(f"app@{digest}")
    assert shared.reads == []
    assert Host(tmp_path / "store", shared, f"app@{digest}").take(f"app@{digest}").digest == digest


def test_many_threads_fetch_once_and_fail_once(tmp_path: Path, image: Image, shared: Shared) -> None:
    shared.push(image)

    def fail() -> None:
        time.sleep(0.3)
        raise ImageUnavailable.of("the store is down")

    shared.before_read = fail
    hosts = [Host(tmp_path / "store", shared) for _ in range(2)]
    errors = take_at_once(hosts[:1] * 4)
    assert {type(error) for error in errors} == {ImageUnavailable}
    assert (len(errors), len(shared.reads)) == (4, 1)
    shared.before_read = lambda: time.sleep(0.1)
    shared.reads.clear()
    assert take_at_once(hosts * 3) == []
    assert len(shared.reads) == 2


def take_at_once(hosts: list[Host]) -> list[SandboxError]:
    errors = []

    def take(host: Host) -> None:
        try:
            host.take()
        except SandboxError as error:
            errors.append(error)

    threads = [threading.Thread(target=take, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_a_fetch_ends_at_its_deadline_and_when_its_job_is_cancelled(
    tmp_path: Path, image: Image, shared: Shared
) -> None:
    shared.push(image)
    shared.before_read = lambda: time.sleep(0.2)
    with pytest.raises(ImageUnavailable, match=r"not here after 0\.1 s"):
        Host(tmp_path / "store", shared, pull_deadline_seconds=0.1).take()

    never = threading.Event()
    shared.before_read = lambda: bool(never.wait(30))
    began = time.monotonic()
    with pytest.raises(ImageUnavailable, match=r"not here after 0\.3 s"):  # as of a share whose server is away
        Host(tmp_path / "store", shared, pull_deadline_seconds=0.3).take()
    assert time.monotonic() - began < 10
    never.set()
    shared.before_read = lambda: None

    def cancel() -> None:
        if shared.reads[-1:] == [image.erofs_sha256]:
            raise Cancelled.of("cancelled")

    host = Host(tmp_path / "store", shared)
    with pytest.raises(Cancelled):
        host.take(check=cancel)
    assert host.store.list() == []
    assert list((tmp_path / "store" / "staging").iterdir()) == []
