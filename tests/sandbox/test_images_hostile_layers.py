"""Images of a registry that try to leave their folder or to fill the host.

Each test is named by the outcome.
"""

from __future__ import annotations

import tarfile
import time
from typing import TYPE_CHECKING

import pytest
from imagetools import extract
from layerings import LAYER, MARK, Layout, member, new_image, pack
from sandfleet_config.errors import ImageInvalid
from sandfleet_worker.sandbox.image.store import ImageStore, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Run
    from sandfleet_config.settings import HostSettings

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    store = ImageStore(tmp_path / "store", Limits(max_bytes=32 * MIB, max_files=2000))
    yield store
    staging = tmp_path / "store" / "staging"
    assert not staging.exists() or list(staging.iterdir()) == [], "something half-made is left"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of the host that no image may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["precious"]
    assert (folder / "precious").read_text() == "precious"
    assert (folder / "precious").stat().st_nlink == 1


def names_of(store: ImageStore, source: str, target: Path) -> dict[str, Path]:
    """Add an image; return what is in it, by name."""
    tree = extract(store.add("app", source), target)
    return {str(path.relative_to(tree)): path for path in tree.rglob("*")}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "../../../../../../{outside}/evil", "{outside}/evil"])
def test_a_path_that_climbs_stays_inside(store: ImageStore, outside: Path, tmp_path: Path, name: str) -> None:
    found = names_of(store, new_image(tmp_path / "l", [member(name.format(outside=outside))]), tmp_path / "out")
    assert [path.read_bytes() for at, path in found.items() if at.endswith("evil")] == [MARK]


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../../../../..{outside}"])
def test_an_absolute_link_leads_nowhere(store: ImageStore, outside: Path, tmp_path: Path, target: str) -> None:
    link = member("way", tarfile.SYMTYPE, target.format(outside=outside))
    names_of(store, new_image(tmp_path / "l", [link], [member("way/evil"), member("way/precious")]), tmp_path / "out")


def test_a_chain_of_links_leads_nowhere(store: ImageStore, outside: Path, tmp_path: Path) -> None:
    chain = [
        member("a", tarfile.DIRTYPE),
        member("a/b", tarfile.SYMTYPE, "../c"),
        member("c", tarfile.SYMTYPE, ".."),
        member("d", tarfile.SYMTYPE, "a/b/../../../../../.."),
        member("e", tarfile.SYMTYPE, f"d{outside}"),
    ]
    source = new_image(tmp_path / "l", chain, [member("e/evil"), member("a/b/evil"), member("e/precious")])
    names_of(store, source, tmp_path / "out")


@pytest.mark.parametrize(
    "target", ["{outside}/precious", "../../../../../../../../../..{outside}/precious", "way/precious"]
)
def test_a_hard_link_out_of_the_tree_is_refused(store: ImageStore, outside: Path, tmp_path: Path, target: str) -> None:
    way = member("way", tarfile.SYMTYPE, str(outside))
    link = member("mine", tarfile.LNKTYPE, target.format(outside=outside))
    with pytest.raises(ImageInvalid, match="umoci failed"):
        store.add("app", new_image(tmp_path / "l", [way, link, member("mine")]))


def test_device_nodes_do_not_get_into_the_image(store: ImageStore, tmp_path: Path) -> None:
    disk, memory = member("disk", tarfile.BLKTYPE), member("dev/mem", tarfile.CHRTYPE)
    disk.devmajor, disk.devminor, memory.devmajor, memory.devminor = 8, 0, 1, 1
    found = names_of(store, new_image(tmp_path / "l", [disk, memory, member("file")]), tmp_path / "out")
    assert "file" in found
    assert not {"disk", "dev/mem"} & set(found)


def test_a_whiteout_of_nothing_changes_nothing(store: ImageStore, tmp_path: Path) -> None:
    layers = [[member("kept"), member("gone")], [member(".wh.gone"), member(".wh.never"), member("no/.wh.never")]]
    found = names_of(store, new_image(tmp_path / "l", *layers), tmp_path / "out")
    assert "kept" in found
    assert not {"gone", "never", ".wh.never"} & set(found)


@pytest.mark.parametrize("name", [".wh...", ".wh.", ".wh..", "a/.wh.../x"])
def test_a_whiteout_of_the_folder_above_removes_nothing(
    store: ImageStore, outside: Path, tmp_path: Path, name: str
) -> None:
    source = new_image(tmp_path / "l", [member("kept")], [member(name)])
    try:
        found = names_of(store, source, tmp_path / "out")
    except ImageInvalid:
        return
    assert "kept" in found


def test_names_that_are_not_utf_8_are_kept(store: ImageStore, tmp_path: Path) -> None:
    found = names_of(store, new_image(tmp_path / "l", [member("\udcff\udcfe name")]), tmp_path / "out")
    assert found["\udcff\udcfe name"].read_bytes() == MARK


@pytest.mark.parametrize("form", ["gnu", "pax", "plain"])
@pytest.mark.timeout(30)
def test_a_sparse_file_of_100_gb_is_refused_by_its_header(store: ImageStore, tmp_path: Path, form: str) -> None:
    layout = Layout(tmp_path / "l")
    layout.add_layer(new_huge(form))
    began = time.monotonic()
    with pytest.raises(ImageInvalid, match="more than 32 MiB"):
        store.add("app", layout.finish())
    assert time.monotonic() - began < 5


def new_huge(form: str) -> bytes:
    """Return a tar whose one file is 100 GB long and holds nothing."""
    size = 100 * 10**9
    if form == "pax":
        info = member("huge")
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "huge",
            "GNU.sparse.realsize": str(size),
        }
        info.size = 512
        return info.tobuf(tarfile.PAX_FORMAT) + b"1\n%d\n0\n".ljust(512, b"\0") % size + bytes(1024)
    if form == "plain":
        info = member("huge")
        info.size = size
        return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    head = bytearray(member("huge", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    head[386:398], head[398:410] = b"%011o\0" % size, b"%011o\0" % 0
    head[483:495] = b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(1024)


@pytest.mark.timeout(60)
def test_a_zip_bomb_is_refused_before_it_is_unpacked(store: ImageStore, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")

    def bomb() -> Iterator[bytes]:
        for number in range(64):
            info = member(f"zeros-{number}")
            info.size = MIB
            yield info.tobuf(tarfile.GNU_FORMAT) + bytes(MIB)
        yield bytes(1024)

    layout.add_stream(bomb)
    assert layout.layers[0]["size"] < MIB
    with pytest.raises(ImageInvalid, match="more than 32 MiB"):
        store.add("app", layout.finish())


@pytest.mark.timeout(60)
def test_a_zip_bomb_behind_the_end_of_its_tar_is_unpacked_to_nowhere(store: ImageStore, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    layout.add_stream(lambda: iter([pack(member("file")), *[bytes(MIB)] * 100]))
    found = names_of(store, layout.finish(), tmp_path / "out")
    assert found["file"].read_bytes() == MARK


def test_a_name_of_many_megabytes_is_refused(store: ImageStore, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    layout.add_layer(pack(member("n" * (2 * MIB))))
    with pytest.raises(ImageInvalid, match="a name or an attribute"):
        store.add("app", layout.finish())


def test_50_000_layers_are_refused_before_one_is_read(store: ImageStore, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    layout.add_layer(pack(member("file")))
    layer = {"mediaType": LAYER, "digest": layout.layers[0]["digest"], "size": 1}
    layout.layers = [layer] * 20_000  # with more, the manifest itself is too large
    with pytest.raises(ImageInvalid, match="20000 layers, 500 are the most"):
        store.add("app", layout.finish())
    layout.layers = [layer] * 50_000
    with pytest.raises(ImageInvalid, match="at most 4 MiB"):
        store.add("app", layout.finish())


def test_a_manifest_of_100_mb_is_refused_unread(store: ImageStore, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    with pytest.raises(ImageInvalid, match="at most 4 MiB"):
        store.add("app", layout.finish(annotations={"long": "x" * 100 * 10**6}))


def test_a_layer_that_is_cut_is_refused(store: ImageStore, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    layout.add_layer(pack(*[member(f"file-{number}") for number in range(100)]))
    blob = layout.folder / "blobs/sha256" / layout.layers[0]["digest"].removeprefix("sha256:")
    blob.write_bytes(blob.read_bytes()[:-40])
    with pytest.raises(ImageInvalid):
        store.add("app", layout.finish())


@pytest.mark.images
@pytest.mark.timeout(280)
def test_a_million_files_are_refused_by_their_number(tmp_path: Path) -> None:
    from sandfleet_worker.sandbox.image.registry.puller import LIMITS

    store, layout = ImageStore(tmp_path / "store", LIMITS), Layout(tmp_path / "l")
    head = member("f-0000000").tobuf(tarfile.GNU_FORMAT)

    def many() -> Iterator[bytes]:
        for number in range(1_000_000):
            part = bytearray(head)
            part[2:9] = b"%07d" % number
            part[148:156] = b"        "
            part[148:156] = b"%06o\0 " % sum(part)
            yield bytes(part)
        yield bytes(1024)

    layout.add_stream(many)
    began = time.monotonic()
    with pytest.raises(ImageInvalid, match="more than 500,000 files"):
        store.add("app", layout.finish())
    assert time.monotonic() - began < 30
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_a_setuid_file_gives_no_right(host: HostSettings, run: Run, tmp_path: Path) -> None:
    """It keeps its bit, as in Docker, and the kernel of the sandbox ignores it."""
    store = ImageStore(host.images.root)
    busybox = extract(store.resolve("busybox"), tmp_path / "busybox")
    program = (busybox / "bin/busybox").read_bytes()
    info = member("bin/id", mode=0o4755)
    info.size = len(program)
    layout = Layout(tmp_path / "l")
    data = info.tobuf(tarfile.GNU_FORMAT) + program.ljust(-(-len(program) // 512) * 512, b"\0")
    layout.add_layer(data + member("bin/stat", tarfile.LNKTYPE, "bin/id").tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    store.add("setuid", layout.finish())
    try:
        assert run("/bin/stat", "-c", "%a %u", "/bin/id", image="setuid").stdout.text == "4755 0\n"
        assert run("/bin/id", "-u", image="setuid").stdout.text == "65534\n"
    finally:
        store.remove("setuid")
