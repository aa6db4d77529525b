"""Hostile images in layouts: layers written byte for byte, which no honest tool makes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

from sandfleet_worker.sandbox.image.oci import find_architecture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MARK = b"written by the image"


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o755) -> tarfile.TarInfo:
    """Return the header of one entry."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


def pack(*members: tarfile.TarInfo) -> bytes:
    """Return a tar of entries; plain files hold `MARK`."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for info in members:
            if info.isreg():
                info.size = len(MARK)
                tar.addfile(info, io.BytesIO(MARK))
            else:
                tar.addfile(info)
    return stream.getvalue()


class Layout:
    """An OCI layout in `folder`, whose manifest may list anything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs/sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.layers: list[dict[str, Any]] = []
        self.diff_ids: list[str] = []

    def add_blob(self, data: bytes) -> dict[str, Any]:
        """Store bytes; return their descriptor without media type."""
        name = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs/sha256" / name).write_bytes(data)
        return {"digest": f"sha256:{name}", "size": len(data)}

    def add_layer(self, tar: bytes) -> None:
        """Add a layer of the tar's bytes."""
        self.diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
        self.layers.append({"mediaType": LAYER, **self.add_blob(gzip.compress(tar, 1, mtime=0))})

    def add_stream(self, parts: Callable[[], Iterable[bytes]]) -> None:
        """Add a layer of a tar that is too long for the memory."""
        plain, packed = hashlib.sha256(), self.folder / "packed"
        with gzip.GzipFile(packed, "wb", 1, mtime=0) as stream:
            for part in parts():
                plain.update(part)
                stream.write(part)
        self.diff_ids.append(f"sha256:{plain.hexdigest()}")
        with packed.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
        size = packed.stat().st_size
        packed.rename(self.folder / "blobs/sha256" / name)
        self.layers.append({"mediaType": LAYER, "digest": f"sha256:{name}", "size": size})

    def finish(self, **manifest: Any) -> str:
        """Write config, manifest and index; return the source for `images add`."""
        config = {
            "os": "linux",
            "architecture": find_architecture(),
            "config": {"Cmd": ["x"]},
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        }
        fields = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **self.add_blob(json.dumps(config).encode())},
            "layers": self.layers,
        } | manifest
        entry = {"mediaType": MANIFEST, **self.add_blob(json.dumps(fields).encode())}
        entry["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return f"oci:{self.folder}:v1"


def new_image(folder: Path, *layers: Iterable[tarfile.TarInfo]) -> str:
    """Return the source of an image whose layers have these entries."""
    layout = Layout(folder)
    for layer in layers:
        layout.add_layer(pack(*layer))
    return layout.finish()
