"""The store of datasets: what is added, listed, verified and removed."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from datasethost import give_datasets
from sandfleet_config.errors import ImageInvalid, ImageNotFound
from sandfleet_config.settings import HostSettings
from sandfleet_worker.cli import main
from sandfleet_worker.sandbox.image import datasets as datasets_module
from sandfleet_worker.sandbox.image.datasets import DatasetStore
from sandfleet_worker.sandbox.image.tools import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWS_ALL = "`sandfleet-worker datasets list` shows them all"


@pytest.fixture
def host(host: HostSettings, images_root: Path, tmp_path: Path) -> HostSettings:
    return give_datasets(host, images_root, tmp_path / "root")


def test_the_same_tree_is_the_same_digest_from_a_folder_and_from_a_tar(
    datasets: DatasetStore, corpus: str, source: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as archive:
        for name in ("hello", "sub", "link"):
            archive.add(source / name, name)
    told = list[str]()
    assert datasets.add("packed", tmp_path / "source.tar.gz").digest == f"sha256:{corpus}"
    (source / "hello").chmod(0o644)
    assert datasets.add("again", source, told.append).digest == f"sha256:{corpus}"
    assert f"left out {3 if os.geteuid() == 0 else 2} devices, sockets and fifos" in told
    assert [dataset.name for dataset in datasets.list()] == ["again", "corpus", "packed"]
    (source / "hello").write_text("other data\n")
    assert datasets.add("again", source).digest != f"sha256:{corpus}"
    datasets.remove("packed")
    assert [dataset.name for dataset in datasets.list()] == ["again", "corpus"]


def hostile_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(path.parent)
        archive.addfile(link)
        member = tarfile.TarInfo("out/written")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    return path


def test_a_tar_does_not_write_outside(datasets: DatasetStore, tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid):
        datasets.add("evil", hostile_tar(tmp_path / "evil.tar"))
    assert not (tmp_path / "written").exists()
    assert not datasets.list()


@pytest.fixture
def left(host: HostSettings) -> Iterator[None]:
    yield
    assert not list((host.images.root / "datasets/staging").glob("add-*"))


@pytest.mark.usefixtures("left")
def test_what_cannot_be_added_says_why_and_leaves_nothing(host: HostSettings, source: Path, tmp_path: Path) -> None:
    store = DatasetStore(host.images.root, Limits(max_files=3))
    (tmp_path / "text").write_text("no tar")
    for name, place, why in (
        ("Corpus", source, "is no name of a dataset"),
        ("team/corpus", source, "is no name of a dataset"),
        ("corpus:v1", source, "is no name of a dataset"),
        ("corpus", tmp_path / "nothing", "nothing is neither a folder nor a tar file"),
        ("corpus", tmp_path / "text", "text is no tar file"),
        ("corpus", source, "more than 3 files"),
    ):
        with pytest.raises(ImageInvalid, match=why):
            store.add(name, place)
    with pytest.raises(ImageNotFound, match="no dataset corpus here"):
        store.remove("corpus")


def test_the_commands_add_list_verify_and_remove(
    datasets: DatasetStore,
    source: Path,
    host: HostSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SANDFLEET_IMAGES__ROOT", str(host.images.root))

    def run_command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["datasets", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    assert run_command("list")[2] == "there are no datasets here: sandfleet-worker datasets add NAME FOLDER\n"
    code, out, err = run_command("add", "corpus", str(source))
    digest = datasets.list()[0].digest
    assert (code, out) == (0, f"corpus {digest}\n")
    assert err.startswith(f"copying {source}\nleft out ")
    [listed] = json.loads(run_command("list", "--json")[1])
    assert (listed["name"], listed["digest"], listed["source"]) == ("corpus", digest, str(source))
    assert "corpus" in run_command("list")[1]
    assert run_command("verify")[:2] == (0, "1 dataset is as it was packed\n")
    erofs = datasets.list()[0].erofs_path
    content = erofs.read_bytes()
    erofs.write_bytes(content[:-1])
    code, out, err = run_command("verify")
    assert (code, out) == (1, ""), "what cannot be read at all is no good dataset"
    assert "dataset corpus is damaged (its files do not belong together)" in err
    erofs.write_bytes(content)
    reference = host.images.root / "datasets/refs/corpus.json"
    text = reference.read_text()
    reference.write_text("{")
    code, out, err = run_command("verify")
    assert (code, out) == (1, "")
    assert "dataset corpus is damaged (its reference cannot be read): `sandfleet-worker datasets rm corpus`" in err
    reference.write_text(text)
    assert run_command("rm", "corpse")[::2] == (
        1,
        f"error: IMAGE_NOT_FOUND: no dataset corpse here (this host has: corpus): {SHOWS_ALL}\n",
    )
    (source / "new").write_text("new")
    assert run_command("add", "corpus", str(source))[0] == 0
    assert run_command("gc")[1] == "0 datasets removed\n", "it was packed just now"
    monkeypatch.setattr(datasets_module, "NEW_SECONDS", 0.0)
    assert run_command("gc")[1] == f"removed {digest}\n1 dataset removed\n"
    assert run_command("gc")[1] == "0 datasets removed\n"
    assert [dataset.name for dataset in datasets.list()] == ["corpus"]
    assert run_command("rm", "corpus")[:2] == (0, "removed corpus\n")
    assert not datasets.list()
