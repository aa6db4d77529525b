"""Hosts with the images of all tests, and the test's own datasets; conftest.py has the fixtures."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.settings import HostSettings, ImagesSettings
from sandfleet_worker.sandbox.image.datasets import DatasetStore

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.runsc import RunscBinary


def give_datasets(host: HostSettings, images_root: Path, root: Path) -> HostSettings:
    """Return settings whose images are those of all tests, and whose datasets are below `root`."""
    root.mkdir()
    for name in ("blobs", "refs", "locks", "staging"):
        (images_root / name).mkdir(exist_ok=True)
        (root / name).symlink_to(images_root / name)
    return host.model_copy(update={"images": ImagesSettings(root=root)})


@pytest.fixture
def able(runsc: RunscBinary) -> None:
    if not runsc.abilities.mounts_erofs:
        pytest.skip("this release of runsc mounts no datasets; see the test of its refusal")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder whose modes and kinds of files are of every sort."""
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "hello").write_text("hello data\n")
    (folder / "hello").chmod(0o600)
    (folder / "sub/tool").write_text("#!/bin/sh\nexec id -u\n")
    (folder / "sub/tool").chmod(0o4750)
    (folder / "sub").chmod(0o700)
    (folder / "link").symlink_to("sub/tool")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    if os.geteuid() == 0:
        os.mknod(folder / "device", 0o666 | 0o020000, os.makedev(1, 3))
        os.chown(folder / "hello", 1234, 1234)
    return folder


@pytest.fixture
def datasets(host: HostSettings) -> DatasetStore:
    return DatasetStore(host.images.root)


@pytest.fixture
def corpus(datasets: DatasetStore, source: Path) -> str:
    """Add the source as the dataset `corpus`; return its digest in hex."""
    return datasets.add("corpus", source).digest.removeprefix("sha256:")
