"""The image store with its real tools: mkfs.erofs, umoci, mmdebstrap, cp, tar."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harms import give_descriptors, take_descriptors
from imagetools import extract, new_layout
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources, ImageInvalid, ImageNotFound, ImageUnavailable
from sandfleet_worker.sandbox.image.pack import FIXED_TIME
from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from conftest import Run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    store = ImageStore(tmp_path / "store")
    yield store
    staging = tmp_path / "store" / "staging"
    assert not staging.exists() or list(staging.iterdir()) == [], "an add left something half-made"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return new_tree(tmp_path / "tree")


def new_tree(tree: Path, text: str = "hello") -> Path:
    (tree / "etc").mkdir(parents=True)
    (tree / "home" / "app").mkdir(parents=True)
    (tree / "etc" / "passwd").write_text(
        "app:x:1000:1000::/home/app:/bin/sh\nlost:x:1001:1001::/home/lost:/bin/sh\ndaemon:x:1:1::/etc:/\n"
    )
    (tree / "hello").write_text(text)
    (tree / "link").symlink_to("hello")
    (tree / "twin").hardlink_to(tree / "hello")
    return tree


def test_a_source_that_is_none_is_told_what_to_give_instead(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    store.add("app", f"rootfs:{tree}")
    text = tmp_path / "notes.txt"
    text.write_text("no archive\n")
    for source, said in (
        (f"rootfs:{text}", f"rootfs:{text} is no tar file"),
        ("rootfs:/no/such", "rootfs:/no/such is neither a folder nor a tar file"),
        (str(tree), f"did you mean rootfs:{tree}?"),
        ("docker://alpine:3", "skopeo copy docker://alpine:3 oci:FOLDER:NAME"),
        ("docker-archive:/a.tar", "skopeo copy docker-archive:/a.tar oci:FOLDER:NAME"),
        ("alpine", "cannot make an image from 'alpine'"),
        (None, "there is no starter image 'nope'"),
    ):
        with pytest.raises(ImageInvalid) as caught:
            store.add("nope", source)
        assert said in caught.value.message
        assert "tar:" not in caught.value.message
    with pytest.raises(ImageNotFound) as missing:
        store.remove("nope")
    assert (
        missing.value.message
        == "no image nope here (this host has: app): `sandfleet-worker images list` shows them all"
    )


def test_a_host_without_a_descriptor_left_calls_no_image_damaged(images_root: Path) -> None:
    store = ImageStore(images_root)
    digest = store.resolve("python").digest
    fresh = ImageStore(images_root)  # it has read no image yet
    reads = (
        lambda: store.resolve("python"),
        lambda: fresh.resolve(digest),
        store.list,
        lambda: store.remove("no-such"),
    )
    limits = take_descriptors(os.getpid(), limit=3)
    assert limits
    try:
        for read in reads:
            with pytest.raises(OSError, match="Too many open files"):
                read()
    finally:
        give_descriptors(os.getpid(), limits)


def test_a_folder_becomes_an_image(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    said: list[str] = []
    image = store.add("team/app:v1", f"rootfs:{tree}", on_progress=said.append)
    unpacked = extract(image, tmp_path / "out")
    assert (unpacked / "hello").read_text() == "hello"
    assert (unpacked / "link").readlink() == Path("hello")
    assert (unpacked / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert {"proc", "sys", "dev"} <= {path.name for path in unpacked.iterdir()}
    assert image.has_directory("/home/app")
    assert image.has_directory("/tmp")
    assert not image.has_directory("/home/lost")
    assert not image.has_directory("/etc"), "a writable home there would hide the system's files"
    assert store.resolve("team/app:v1") == store.add("team/app:v1", f"rootfs:{tree}").model_copy(
        update={"created": image.created}
    )
    assert said
    assert not (tree / "tmp").exists(), "the source is the user's"
    store.verify(image)


def test_the_same_tree_is_the_same_image_whatever_its_times_and_however_it_comes(
    store: ImageStore, tmp_path: Path
) -> None:
    first = new_tree(tmp_path / "one")
    second = new_tree(tmp_path / "two")
    os.utime(second / "hello", (1, 1))
    packed = tmp_path / "three.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(first, arcname=".")
    digests = {store.add(f"n{n}", f"rootfs:{source}").digest for n, source in enumerate([first, second, packed])}
    assert len(digests) == 1
    (second / "hello").chmod(0o600)
    assert store.add("n4", f"rootfs:{second}").digest not in digests


@pytest.mark.parametrize("change", ["content", "owner", "mode", "link", "name", "twin"])
def test_any_change_is_another_digest(store: ImageStore, tree: Path, change: str) -> None:
    before = store.add("app", f"rootfs:{tree}").digest
    match change:
        case "content":
            (tree / "hello").write_text("hallo")
        case "owner":
            os.chown(tree / "hello", 1, 1)
        case "mode":
            (tree / "hello").chmod(0o711)
        case "link":
            (tree / "link").unlink()
            (tree / "link").symlink_to("twin")
        case "name":
            (tree / "hello").rename(tree / "hullo")
        case _:
            (tree / "twin").unlink()
            shutil.copy2(tree / "hello", tree / "twin")
    assert store.add("app", f"rootfs:{tree}").digest != before


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.zst"])
def test_tars_of_every_compression(store: ImageStore, tree: Path, tmp_path: Path, suffix: str) -> None:
    # A colon, which GNU tar would take for a host name.
    target = tmp_path / f"a:b.{suffix}"
    argv = ["tar", "--force-local", "--auto-compress", "-cf", str(target), "-C", str(tree), "."]
    subprocess.run(argv, check=True)
    assert store.add("app", f"rootfs:{target}").digest == store.add("app", f"rootfs:{tree}").digest


def test_an_oci_layout_keeps_config_and_digest(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    source = new_layout(
        tmp_path / "layout", tree, "--config.env=A=1", "--config.cmd=x", "--config.workingdir=/w", "--config.user=app"
    )
    before = sorted(path.name for path in (tmp_path / "layout").rglob("*"))
    image = store.add("app", source)
    manifest = (tmp_path / "layout" / "blobs" / "sha256" / image.digest.removeprefix("sha256:")).read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == image.digest.removeprefix("sha256:")
    assert (image.env[-1], image.cmd, image.working_dir, image.user) == ("A=1", ("x",), "/w", "app")
    assert (extract(image, tmp_path / "out") / "twin").read_text() == "hello"
    assert sorted(path.name for path in (tmp_path / "layout").rglob("*")) == before, "a layout may be read-only"
    said: list[str] = []
    store.add("again", source, on_progress=said.append)
    assert said == ["already here"]


def test_a_layer_that_was_altered_is_refused(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    (tree / "random").write_bytes(os.urandom(1 << 16))
    source = new_layout(tmp_path / "layout", tree, "--config.cmd=x")
    layer = max((tmp_path / "layout" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    layer.write_bytes(layer.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(ImageInvalid, match="umoci failed"):
        store.add("app", source)
    assert store.list() == []


@pytest.mark.timeout(400)
def test_the_python_starter_comes_out_the_same_again(images_root: Path, store: ImageStore) -> None:
    first = ImageStore(images_root).resolve("python")
    again = store.add("python", is_fresh=True)
    assert again.digest == first.digest
    assert again.erofs_sha256 == first.erofs_sha256


def test_the_busybox_starter_comes_out_the_same_whatever_the_umask(store: ImageStore) -> None:
    digests = {store.add("busybox").digest}
    old = os.umask(0o077)
    try:
        digests.add(store.add("busybox", is_fresh=True).digest)
    finally:
        os.umask(old)
    assert len(digests) == 1


def test_python_imports_without_reading_sources_again(python: "Run") -> None:
    outcome = python("import json; print(open(json.__cached__, 'rb').read(8)[4])")
    assert outcome.code is ErrorCode.OK, outcome.stderr.text
    assert outcome.stdout.text == "1\n", "a .pyc that is neither checked by time (0) nor by hash (3)"


def test_files_keep_their_times(store: ImageStore, tree: Path, tmp_path: Path) -> None:
    os.utime(tree / "hello", (1_234_567_890, 1_234_567_890))
    os.utime(tree / "etc" / "passwd", (1_900_000_000_000, 1_900_000_000_000))
    unpacked = extract(store.add("app", f"rootfs:{tree}"), tmp_path / "out")
    # A .pyc that holds its source's time stays valid.
    assert (unpacked / "hello").stat().st_mtime == 1_234_567_890
    assert (unpacked / "etc" / "passwd").stat().st_mtime == FIXED_TIME, "a time in the future is none"


def test_an_unknown_image_is_told_with_what_is_near(store: ImageStore, tree: Path) -> None:
    with pytest.raises(ImageNotFound, match="no image at all"):
        store.resolve("judge")
    store.add("judge", f"rootfs:{tree}")
    with pytest.raises(ImageNotFound, match=r"no image jugde here \(this host has: judge\).*images add jugde SOURCE"):
        store.resolve("jugde")
    with pytest.raises(ImageNotFound, match="images add python`"):
        store.resolve("python")


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
def test_a_damaged_image_is_said_to_be_and_adding_it_again_mends_it(store: ImageStore, tree: Path, damage: str) -> None:
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
    store.add("other", f"rootfs:{new_tree(tmp_path / 'other')}")
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
def test_a_source_that_is_none_is_refused(store: ImageStore, source: str | None) -> None:
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
