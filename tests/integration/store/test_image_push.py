"""Images in real stores: what is uploaded, what the collector keeps, what a second host takes."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.errors import ImageInvalid, ImageUnavailable
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.settings import ImagesSettings, WorkerSettings
from sandfleet_config.store.protocol import StoreDown
from sandfleet_config.store.redis_store import RedisStore
from sandfleet_config.store_settings import StoreSettings
from sandfleet_worker import shared_images
from sandfleet_worker.sandbox.image.finder import ImageFinder
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.start_hooks import NoHooks
from sandfleet_worker.shared_images import MAX_NAMES, SHARED_KEY, FleetImages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_config.store.protocol import ObjectStore
    from store_kinds import StoreKind

PINS = f"{KEY_PREFIX}store:pins"


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    """A host with the image `app`."""
    if shutil.which("mkfs.erofs") is None:
        told = pytest.fail if os.environ.get("CI") else pytest.skip
        told("mkfs.erofs is not installed: scripts/setup.sh installs it")
    store = ImageStore(tmp_path / "images")
    add(store, tmp_path, "one")
    return store


def add(store: ImageStore, folder: Path, text: str) -> None:
    tree = folder / f"tree-{text}"
    tree.mkdir()
    (tree / "which").write_text(text)
    store.add("app", f"rootfs:{tree}")


def open_fleet(monkeypatch: pytest.MonkeyPatch, client: Any, store: ObjectStore) -> FleetImages:
    monkeypatch.setattr(shared_images, "open_store", lambda *_: store)
    # The settings say only whether the store is in Redis; `store` is what is used.
    url = "" if isinstance(store, RedisStore) else "file:///srv/store"
    return FleetImages(WorkerSettings(images=ImagesSettings(shared=("*",)), store=StoreSettings(url=url)), client)


@pytest.fixture
def fleet(any_store: StoreKind, client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetImages]:
    yield open_fleet(monkeypatch, client, any_store.store)
    client.delete(SHARED_KEY)


def read_pins(client: Any) -> list[bytes]:
    return sorted(client.zrange(PINS, 0, -1))


def test_a_pushed_image_is_pinned_until_it_is_replaced_or_shared_no_more(
    any_store: StoreKind, fleet: FleetImages, client: Any, images: ImageStore, tmp_path: Path
) -> None:
    if any_store.kind == "redis":
        with pytest.raises(ImageInvalid, match="SANDFLEET_STORE__URL=file:///FOLDER"):
            fleet.push(images, "app")
        assert (any_store.count_files(), client.exists(SHARED_KEY, PINS)) == (0, 0)
        return
    first = fleet.push(images, "app:latest")
    image = images.resolve("app")
    assert (first.name, first.digest, first.uploaded_bytes > image.size_bytes) == ("app", image.digest, True)
    names = (first.digest.removeprefix("sha256:"), image.erofs_sha256)
    assert read_pins(client) == sorted(f"{sha256} image:app".encode() for sha256 in names)
    assert fleet.push(images, "app").uploaded_bytes == 0
    assert fleet.list_takeable() == {"app", first.digest}

    other = ImageFinder(ImageStore(tmp_path / "other"), ImagesSettings(root=tmp_path / "other", shared=("*",)), fleet)
    with other.hold("app", NoHooks(), lambda: None) as taken:
        assert taken.erofs_path.read_bytes() == image.erofs_path.read_bytes()
        assert taken.digest == first.digest

    add(images, tmp_path, "two")
    second = fleet.push(images, "app")
    assert len(read_pins(client)) == len(names)
    assert not any(sha256.encode() in pin for pin in read_pins(client) for sha256 in names)
    assert all(client.zscore(f"{KEY_PREFIX}store:refs", sha256) for sha256 in names), "they stay for a day"
    assert fleet.list_names() == {"app": second.digest}
    assert fleet.unshare("app")
    assert (fleet.list_names(), read_pins(client), fleet.unshare("app")) == ({}, [], False)


def test_the_number_of_shared_names_is_bounded(
    any_store: StoreKind, fleet: FleetImages, client: Any, images: ImageStore
) -> None:
    if any_store.kind == "redis":
        return
    client.hset(SHARED_KEY, mapping={f"name-{number}": f"sha256:{number:064d}" for number in range(MAX_NAMES)})
    with pytest.raises(ImageInvalid, match="images unshare NAME"):
        fleet.push(images, "app")
    assert (len(fleet.list_names()), read_pins(client)) == (MAX_NAMES, [])
    assert fleet.unshare("name-7")
    fleet.push(images, "app")
    assert len(fleet.list_names()) == MAX_NAMES


def test_an_image_that_is_damaged_here_is_not_pushed(
    any_store: StoreKind, fleet: FleetImages, client: Any, images: ImageStore
) -> None:
    if any_store.kind == "redis":
        return
    path = images.resolve("app").erofs_path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ImageInvalid, match="not uploaded"):
        fleet.push(images, "app")
    assert client.exists(SHARED_KEY, PINS) == 0


def test_a_store_that_is_down_shares_nothing(
    client: Any, images: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_store: StoreKind
) -> None:
    def fail(*_: object) -> bool:
        raise StoreDown("it is down")

    if any_store.kind == "redis":
        return
    monkeypatch.setattr(type(any_store.store), "put_file", fail)
    fleet = open_fleet(monkeypatch, client, any_store.store)
    with pytest.raises(ImageUnavailable, match="it is down"):
        fleet.push(images, "app")
    assert client.exists(SHARED_KEY, PINS) == 0
