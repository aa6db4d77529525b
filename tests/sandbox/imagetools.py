"""Look into packed images, and build OCI layouts, with the tools that others use for it."""

import subprocess
from pathlib import Path

from sandfleet_worker.sandbox.image.image import Image


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
