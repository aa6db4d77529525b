"""Packing adds files to an untrusted tree: never through a link, never outside of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandfleet_worker.sandbox.image.pack import HOSTS, add_hosts, add_mount_points

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder of the host with a file in it."""
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "hosts").write_text("the host's\n")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


def test_an_image_without_a_hosts_file_gets_one(tree: Path) -> None:
    add_hosts(tree)
    assert (tree / "etc/hosts").read_text() == HOSTS
    assert (tree / "etc/hosts").stat().st_mode & 0o777 == 0o644


def test_the_images_own_file_is_replaced_and_its_other_names_keep_it(tree: Path) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/hosts").write_text("10.0.0.1 elsewhere\n")
    (tree / "etc/other").hardlink_to(tree / "etc/hosts")
    add_hosts(tree)
    assert (tree / "etc/hosts").read_text() == HOSTS
    assert (tree / "etc/other").read_text() == "10.0.0.1 elsewhere\n"


def test_no_link_is_followed(tree: Path, outside: Path) -> None:
    (tree / "etc").symlink_to(outside)
    add_hosts(tree)
    (tree / "etc").unlink()
    (tree / "etc").mkdir()
    (tree / "etc/hosts").symlink_to(outside / "hosts")
    add_hosts(tree)
    assert (outside / "hosts").read_text() == "the host's\n"
    assert (tree / "etc/hosts").read_text() == HOSTS
    assert not (tree / "etc/hosts").is_symlink()


def test_paths_that_are_not_folders_or_files_are_left(tree: Path) -> None:
    (tree / "etc").write_text("a file")
    add_hosts(tree)
    assert (tree / "etc").read_text() == "a file"
    (tree / "etc").unlink()
    (tree / "etc/hosts/inside").mkdir(parents=True)
    add_hosts(tree)
    assert (tree / "etc/hosts/inside").is_dir()


def test_an_image_gets_folders_for_files_and_datasets(tree: Path) -> None:
    add_mount_points(tree)
    for name in ("work", "data"):
        assert (tree / name).is_dir()
        assert (tree / name).stat().st_mode & 0o7777 == 0o755


def test_what_an_image_has_in_place_of_those_folders_stays(tree: Path, outside: Path) -> None:
    (tree / "work").mkdir(mode=0o700)
    (tree / "work/own").write_text("own")
    (tree / "data").symlink_to(outside)
    add_mount_points(tree)
    assert (tree / "work").stat().st_mode & 0o7777 == 0o700
    assert (tree / "work/own").read_text() == "own"
    assert (tree / "data").is_symlink()
    assert [path.name for path in outside.iterdir()] == ["hosts"]
