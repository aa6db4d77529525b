"""Fill a staging folder with the files of an image source. Every source may be hostile.

The tools run on a fresh private folder, and never follow a link out of it: GNU tar drops leading
slashes, refuses names with `..` and makes links that leave the folder last; umoci resolves every
path inside the root. Device nodes that they make are removed before the tree is packed
(`pack.normalize`).
"""

import json
import os
from pathlib import Path

from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.oci import OciImage
from sandfleet_worker.sandbox.image.tools import StagingFolder

NO_TAR = "does not look like a tar archive"
_IS_ROOT = os.geteuid() == 0


def unpack_rootfs(source: Path, staging: StagingFolder, *, shown: str = "") -> None:
    """Copy a folder, or extract a tar (plain, gz, bz2, xz or zst, recognized by its content).

    `shown` names the source in messages; empty is ``rootfs:`` and its path.

    Raises:
        ImageInvalid: it is neither, or the tar is broken or tries to leave its folder.
    """
    shown = shown or f"rootfs:{source}"
    if source.is_dir():
        staging.new_tree()
        _copy_folder(source, staging)
    elif source.is_file():
        staging.new_tree()
        _extract_tar(source, staging, shown)
    else:
        raise ImageInvalid.of(f"{shown} is neither a folder nor a tar file on this host")


def _copy_folder(source: Path, staging: StagingFolder) -> None:
    # Without other file systems: the tree of a running system has /proc and mounted disks in it.
    argv = [
        "cp",
        "--archive",
        "--no-preserve=xattr,context",
        "--one-file-system",
        "--reflink=auto",
        "--sparse=auto",
        "--",
    ]
    staging.run([*argv, f"{source.resolve()}/.", str(staging.tree)])


def _extract_tar(source: Path, staging: StagingFolder, shown: str) -> None:
    try:
        _run_tar(source, staging)
    except ImageInvalid as error:
        if NO_TAR in error.message:
            raise ImageInvalid.of(f"{shown} is no tar file (plain, gz, bz2, xz or zst)") from error
        raise


def _run_tar(source: Path, staging: StagingFolder) -> None:
    owner = ["--same-owner", "--numeric-owner"] if _IS_ROOT else ["--no-same-owner"]
    staging.run(
        [
            "tar",
            "--extract",
            "--force-local",  # a colon in the path is no host name
            f"--file={source.resolve()}",
            f"--directory={staging.tree}",
            "--same-permissions",
            "--no-acls",
            "--no-selinux",
            "--no-xattrs",
            "--delay-directory-restore",
            *owner,
        ]
    )


def unpack_oci(image: OciImage, staging: StagingFolder) -> None:
    """Apply the layers of one manifest.

    umoci gets a layout of ours that lists only this manifest and shares the blobs. So it does not
    see the source's own index with its tags, nested indexes or faults, and does not write to the
    source, which may be read-only.

    Raises:
        ImageInvalid: a blob is missing, altered or of a kind that umoci does not know.
    """
    layout = staging.folder / "layout"
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "blobs").symlink_to((image.layout / "blobs").resolve(), target_is_directory=True)
    descriptor = {**image.descriptor, "annotations": {"org.opencontainers.image.ref.name": "image"}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    rootless = [] if _IS_ROOT else ["--rootless"]
    staging.run(["umoci", "raw", "unpack", *rootless, "--image", f"{layout}:image", str(staging.tree)])
