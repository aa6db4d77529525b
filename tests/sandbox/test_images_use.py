"""Images in use: looked up, pinned, damaged, held by jobs, added and removed at the same time."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from imagetools import new_layout, new_tree
from sandfleet_config.errors import HostResources, ImageInvalid, ImageNotFound, ImageUnavailable
from sandfleet_config.settings import HostSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image import image, pack
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.image.users import ResolvedUser
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.bundle import new_init_job


def test_an_unknown_image_is_refused_with_similar_names(store: ImageStore, tree: Path) -> None:
    with pytest.raises(ImageNotFound, match="no image at all"):
        store.resolve("judge")
    store.add("judge", f"rootfs:{tree}")
    with pytest.raises(ImageNotFound, match=r"no image jugde here \(this host has: judge\).*images add jugde SOURCE"):
        store.resolve("jugde")
    for name, command in (("python", "images add python"), ("gcc", "images build gcc")):
        with pytest.raises(ImageNotFound, match=f"`sandfleet-worker {command}`"):
            store.resolve(name)


def test_a_pinned_digest_counts(store: ImageStore, tree: Path) -> None:
    first = store.add("app", f"rootfs:{tree}")
    (tree / "new").write_text("x")
    second = store.add("app", f"rootfs:{tree}")
    assert store.resolve("app").digest == second.digest
    assert store.resolve(f"app@{first.digest}").digest == first.digest
    assert store.resolve(first.digest).name == first.digest
    with pytest.raises(ImageNotFound, match="pinned"):
        store.resolve("app@sha256:" + "0" * 64)
    assert [image.name for image in store.list()] == ["app", first.digest]
    store.remove(first.digest)
    assert [image.name for image in store.list()] == ["app"]


@pytest.mark.parametrize("damage", ["truncate", "no json", "bad json", "no erofs", "bad ref"])
def test_a_damaged_image_is_reported_and_repaired_by_another_add(store: ImageStore, tree: Path, damage: str) -> None:
    image = store.add("app", f"rootfs:{tree}")
    blob = image.erofs_path.parent
    match damage:
        case "truncate":
            os.truncate(image.erofs_path, 4096)
        case "no json":
            (blob / "image.json").unlink()
        case "bad json":
            (blob / "image.json").write_text('{"format": 1}')
        case "no erofs":
            image.erofs_path.unlink()
        case _:
            next(store.root.glob("refs/*")).write_text("{")
    with pytest.raises(ImageInvalid, match=r"damaged.*images rm app"):
        store.resolve("app")
    store.add("app", f"rootfs:{tree}")
    assert store.resolve("app").digest == image.digest
    store.remove("app")
    assert store.list() == []


def test_a_change_on_disk_is_found_by_verify(store: ImageStore, tree: Path) -> None:
    image = store.add("app", f"rootfs:{tree}")
    with image.erofs_path.open("r+b") as stream:
        stream.seek(2000)
        stream.write(b"x")
    with pytest.raises(ImageInvalid, match="changed on disk"):
        store.verify(image)


def test_an_image_in_use_is_not_removed(store: ImageStore, tree: Path) -> None:
    image = store.add("app", f"rootfs:{tree}")
    with store.hold(image), store.hold(image), pytest.raises(ImageInvalid, match="in use"):
        ImageStore(store.root).remove("app")
    assert store.resolve("app") == image
    store.remove("app")
    with pytest.raises(ImageNotFound):
        store.resolve("app")
    with pytest.raises(ImageNotFound), store.hold(image):
        pass
    with pytest.raises(ImageNotFound):
        store.remove("app")


def test_an_image_stays_as_long_as_a_name_points_to_it(store: ImageStore, tree: Path) -> None:
    image = store.add("one", f"rootfs:{tree}")
    store.add("two", f"rootfs:{tree}")
    store.remove("one")
    assert store.resolve("two").digest == image.digest
    store.remove("two")
    assert not image.erofs_path.exists()


def test_a_name_that_another_process_changed_or_removed_is_never_stale(store: ImageStore, tree: Path) -> None:
    reader = ImageStore(store.root)
    for text in ("one", "two", "one"):
        (tree / "hello").write_text(text)
        image = store.add("app", f"rootfs:{tree}")
        assert reader.resolve("app").digest == image.digest
    other = store.add("other", f"rootfs:{tree}")
    store.remove("app")
    with pytest.raises(ImageNotFound):
        reader.resolve("app")
    assert reader.resolve("other").digest == other.digest


def test_many_adders_of_one_image_agree(store: ImageStore, tree: Path) -> None:
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: digests.append(store.add(f"n{n}", f"rootfs:{tree}").digest))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 6
    assert len(set(digests)) == 1
    assert len(store.list()) == 6


def test_a_killed_add_leaves_nothing_behind_once_another_came(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "slow.tar"
    os.mkfifo(fifo)
    code = (
        "import sys; from pathlib import Path; from sandfleet_worker.sandbox.image import unpack\n"
        "from sandfleet_worker.sandbox.image.store import ImageStore\n"
        # A tool that never ends stands in for a large image.
        "unpack._copy_folder = lambda source, staging: staging.run(['sleep', '600'])\n"
        "ImageStore(Path(sys.argv[1])).add('app', 'rootfs:' + sys.argv[2])"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(store.root), str(tree)], start_new_session=True)
    staging = store.root / "staging"
    deadline = time.monotonic() + 20
    while not list(staging.glob("add-*/tree")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert list(staging.glob("add-*"))
    deadline = time.monotonic() + 5  # its tool dies a moment after it, and holds the lock until then
    while list(staging.iterdir()) and time.monotonic() < deadline:
        store.add("other", f"rootfs:{new_tree(tmp_path / 'other')}")
        shutil.rmtree(tmp_path / "other")
    assert list(staging.iterdir()) == []


def test_a_full_disk_is_the_hosts_trouble_and_leaves_nothing(tmp_path: Path, tree: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    (tree / "big").write_bytes(os.urandom(6 << 20))
    # 10 MiB hold the copy, but not the packed image too; 4 MiB not even the copy.
    for size in ("10m", "4m"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(small)], check=True)
        try:
            store = ImageStore(small / "store")
            with pytest.raises(HostResources, match="no space left"):
                store.add("app", f"rootfs:{tree}")
            assert store.list() == []
            assert list((small / "store" / "staging").iterdir()) == []
            assert store.add("tiny", f"rootfs:{new_tree(tmp_path / size)}").size_bytes > 0
        finally:
            subprocess.run(["umount", str(small)], check=True)


def test_a_missing_tool_is_named(store: ImageStore, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ImageUnavailable, match="apt-get install"):
        store.add("app", f"rootfs:{tree}")


@pytest.mark.parametrize(
    "source", [None, "", "rootfs:", "rootfs:/nowhere", "rootfs:/dev/zero", "docker://x", "oci:", "x"]
)
def test_an_unknown_source_is_refused(store: ImageStore, source: str | None) -> None:
    with pytest.raises(ImageInvalid):
        store.add("app", source)


def test_asking_again_is_cheap(store: ImageStore, tree: Path) -> None:
    store.add("app", f"rootfs:{tree}")
    store.resolve("app")
    best = min(_seconds_of_resolve(store) for _ in range(200))
    assert best < 0.0003


def _seconds_of_resolve(store: ImageStore) -> float:
    began = time.perf_counter()
    store.resolve("app")
    return time.perf_counter() - began


@pytest.mark.parametrize("kind", ["rootfs", "oci"])
def test_an_image_of_an_earlier_release_has_no_work_folder_until_it_is_added_again(
    store: ImageStore, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = f"rootfs:{tree}" if kind == "rootfs" else new_layout(tmp_path / "layout", tree)
    with monkeypatch.context() as earlier:
        earlier.setattr(pack, "JOB_FOLDERS", {})
        earlier.setattr(image, "JOB_FOLDERS", {})
        old = store.add("app", source)
    user = ResolvedUser(uid=65534, gid=65534)
    limits = admit(SandboxSpec(image="app", command=["true"]), HostSettings())
    assert old.is_outdated
    new_init_job(limits, old, user)
    with pytest.raises(ImageInvalid, match=r"has no folder /work .* add the image again"):
        new_init_job(limits, old, user, uses_work=True)
    with store.hold(old):  # a job that runs from it
        new = store.add("app", source)
    assert not new.is_outdated
    assert new_init_job(limits, new, user, uses_work=True).cwd == "/work"
    assert (new.digest == old.digest) == (kind == "oci")
    assert store.resolve("app") == new
