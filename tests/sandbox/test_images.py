"""The image store with its real tools: mkfs.erofs, umoci, mmdebstrap, cp, tar."""

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harms import give_descriptors, take_descriptors
from imagetools import extract, new_layout, new_tree
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import ImageInvalid, ImageNotFound
from sandfleet_worker.sandbox.image.pack import FIXED_TIME
from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from conftest import Run


def test_an_unknown_source_is_refused_with_the_forms_to_use(store: ImageStore, tree: Path, tmp_path: Path) -> None:
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
        lambda: fresh.resolve("python"),
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


def test_the_same_tree_is_the_same_image_with_any_times_and_from_any_source(store: ImageStore, tmp_path: Path) -> None:
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


def test_the_busybox_starter_does_not_depend_on_the_umask(store: ImageStore) -> None:
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
