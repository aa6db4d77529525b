"""Archives that try to leave their folder or to fill the host.

Each test is named by the outcome.
"""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from imagetools import extract, new_layout
from sandfleet_config.errors import ImageInvalid
from sandfleet_worker.sandbox.image.store import ImageStore, Limits
from sandfleet_worker.sandbox.image.users import resolve_user

MARK = b"written by the archive"


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store", Limits(max_bytes=32 << 20, max_files=2000))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder of the host that no archive may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    return folder


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, 0o755
    return info


def new_tar(target: Path, *members: tarfile.TarInfo) -> str:
    with tarfile.open(target, "w") as archive:
        for info in members:
            if info.isreg():
                info.size = len(MARK)
                archive.addfile(info, io.BytesIO(MARK))
            else:
                archive.addfile(info)
    return f"rootfs:{target}"


def assert_untouched(outside: Path) -> None:
    assert sorted(path.name for path in outside.iterdir()) == ["precious"]
    assert (outside / "precious").read_text() == "precious"
    assert (outside / "precious").stat().st_nlink == 1


def test_an_absolute_name_lands_inside(store: ImageStore, outside: Path, tmp_path: Path) -> None:
    image = store.add("app", new_tar(tmp_path / "a.tar", member(f"{outside}/evil")))
    assert_untouched(outside)
    assert (extract(image, tmp_path / "out") / f"{outside}/evil".lstrip("/")).read_bytes() == MARK


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "../../../../../../{outside}/evil", "..", "a/.."])
def test_a_name_that_climbs_is_refused(store: ImageStore, outside: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageInvalid, match="tar failed"):
        store.add("app", new_tar(tmp_path / "a.tar", member(name.format(outside=outside))))
    assert_untouched(outside)
    assert not (tmp_path / "store" / "evil").exists()
    assert list((tmp_path / "store" / "staging").iterdir()) == []


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../../../../../{outside}", "a/../../../../.."])
def test_nothing_is_written_through_a_link(store: ImageStore, outside: Path, tmp_path: Path, target: str) -> None:
    link = member("way", tarfile.SYMTYPE, target.format(outside=outside))
    with pytest.raises(ImageInvalid):
        store.add("app", new_tar(tmp_path / "a.tar", link, member("way/evil"), member("way/precious")))
    assert_untouched(outside)


def test_a_chain_of_links_leads_nowhere(store: ImageStore, outside: Path, tmp_path: Path) -> None:
    chain = [
        member("a", tarfile.SYMTYPE, "."),
        member("a/b", tarfile.SYMTYPE, ".."),
        member("a/b/c", tarfile.SYMTYPE, ".."),
    ]
    with pytest.raises(ImageInvalid):
        store.add("app", new_tar(tmp_path / "a.tar", *chain, member("a/b/c/outside/evil"), member("b/../outside/evil")))
    assert_untouched(outside)


def test_a_link_is_not_followed_to_replace_a_file(store: ImageStore, outside: Path, tmp_path: Path) -> None:
    link = member("way", tarfile.SYMTYPE, f"{outside}/precious")
    store.add("app", new_tar(tmp_path / "a.tar", link, member("way")))
    assert_untouched(outside)


@pytest.mark.parametrize("target", ["{outside}/precious", "../../../../../../../../../..{outside}/precious"])
def test_a_hard_link_to_the_host_is_refused(store: ImageStore, outside: Path, tmp_path: Path, target: str) -> None:
    link = member("mine", tarfile.LNKTYPE, target.format(outside=outside))
    with pytest.raises(ImageInvalid, match="tar failed"):
        store.add("app", new_tar(tmp_path / "a.tar", link, member("mine")))
    assert_untouched(outside)


def test_device_nodes_do_not_get_into_the_image(store: ImageStore, tmp_path: Path) -> None:
    disk = member("disk", tarfile.BLKTYPE)
    disk.devmajor, disk.devminor = 8, 0
    memory = member("dev/mem", tarfile.CHRTYPE)
    memory.devmajor, memory.devminor = 1, 1
    image = store.add("app", new_tar(tmp_path / "a.tar", disk, memory, member("file")))
    names = {path.name for path in extract(image, tmp_path / "out").rglob("*")}
    assert "file" in names
    assert not {"disk", "mem"} & names


@pytest.mark.parametrize("name", ["tmp", "proc", "dev", "sys"])
def test_a_link_in_place_of_a_mount_point_is_replaced(
    store: ImageStore, outside: Path, tmp_path: Path, name: str
) -> None:
    link = member(name, tarfile.SYMTYPE, str(outside))
    image = store.add("app", new_tar(tmp_path / "a.tar", link))
    assert image.has_directory(f"/{name}")
    assert not (extract(image, tmp_path / "out") / name).is_symlink()
    assert_untouched(outside)


def test_a_passwd_that_is_a_link_lists_nobody(store: ImageStore, tmp_path: Path) -> None:
    link = member("etc/passwd", tarfile.SYMTYPE, "/etc/passwd")
    image = store.add("app", new_tar(tmp_path / "a.tar", member("etc", tarfile.DIRTYPE), link))
    assert image.users == {}
    assert resolve_user(image, "nobody:nogroup").uid == 65534


def test_one_huge_sparse_file_is_stopped(store: ImageStore, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ImageInvalid, match="more than 32 MiB"):
        store.add("app", f"rootfs:{tree}")
    target = tmp_path / "a.tar"
    subprocess.run(["tar", "-cSf", str(target), "-C", str(tree), "."], check=True)
    assert target.stat().st_size < 1 << 20
    with pytest.raises(ImageInvalid, match="more than 32 MiB"):
        store.add("app", f"rootfs:{target}")
    assert list((tmp_path / "store" / "staging").iterdir()) == []


@pytest.mark.timeout(30)
def test_a_huge_sparse_file_that_the_kernel_did_not_stop_is_not_hashed(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine the limit comes after cp's file; a terabyte of zeros hashes an hour."""
    monkeypatch.setattr("sandfleet_worker.sandbox.image.tools.resource.prlimit", lambda *_: None)
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ImageInvalid, match="more than 32 MiB"):
        store.add("app", f"rootfs:{tree}")
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_many_files_that_outgrow_the_limit_together_are_stopped(store: ImageStore, tmp_path: Path) -> None:
    target = tmp_path / "bomb.tar.gz"
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for number in range(40):
            info = member(f"f{number}", size=1 << 20)
            archive.addfile(info, io.BytesIO(bytes(1 << 20)))
    assert target.stat().st_size < 1 << 20
    with pytest.raises(ImageInvalid, match="more than 32 MiB"):
        store.add("app", f"rootfs:{target}")


def test_too_many_files_are_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="more than 2,000 files"):
        store.add("app", new_tar(tmp_path / "a.tar", *[member(f"f{number}") for number in range(2001)]))


def test_too_deep_a_tree_is_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="deep"):
        store.add("app", new_tar(tmp_path / "a.tar", member("d/" * 400 + "f")))


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b broken gzip"])
def test_a_file_that_is_not_a_tar_is_refused(store: ImageStore, tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "a.tar"
    target.write_bytes(content)
    with pytest.raises(ImageInvalid, match=r"is no tar file|tar failed"):
        store.add("app", f"rootfs:{target}")


def test_names_that_are_no_text_are_kept(store: ImageStore, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (Path(os.fsdecode(bytes(tree) + b"/\xff\n\t"))).write_bytes(MARK)
    image = store.add("app", f"rootfs:{tree}")
    assert (Path(os.fsdecode(bytes(extract(image, tmp_path / "out")) + b"/\xff\n\t"))).read_bytes() == MARK


@pytest.mark.parametrize("link", ["{outside}", "../../../../../../../../..{outside}"])
def test_an_oci_layer_does_not_write_through_a_link_of_the_layer_below(
    store: ImageStore, outside: Path, tmp_path: Path, link: str
) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    (lower / "way").symlink_to(link.format(outside=outside))
    source = new_layout(tmp_path / "layout", lower, "--config.cmd=x")
    (upper / "way").mkdir(parents=True)
    (upper / "way" / "evil").write_bytes(MARK)
    # Insert the second layer as files below the link.
    argv = ["umoci", "insert", "--image", source.removeprefix("oci:"), str(upper / "way" / "evil"), "/way/evil"]
    subprocess.run(argv, check=True, capture_output=True)
    store.add("app", source)
    assert_untouched(outside)
