"""Stores, sources and layouts of images for tests, read and built with the usual tools.

conftest.py offers the fixtures.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandfleet_worker.sandbox.image.image import Image
from sandfleet_worker.sandbox.image.store import ImageStore


def extract(image: Image, target: Path) -> Path:
    subprocess.run(["fsck.erofs", f"--extract={target}", str(image.erofs_path)], check=True, capture_output=True)
    return target


def new_layout(folder: Path, tree: Path, *config: str) -> str:
    """Build an OCI layout offline, as a registry would hand it out."""
    for argv in (
        ["umoci", "init", "--layout", str(folder)],
        ["umoci", "new", "--image", f"{folder}:v1"],
        ["umoci", "insert", "--image", f"{folder}:v1", str(tree), "/"],
        ["umoci", "config", "--image", f"{folder}:v1", *config],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    return f"oci:{folder}:v1"


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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    store = ImageStore(tmp_path / "store")
    yield store
    staging = tmp_path / "store" / "staging"
    assert not staging.exists() or list(staging.iterdir()) == [], "an add left something half-made"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return new_tree(tmp_path / "tree")
