"""Images as the store has them on disk, without anything in them: for tests that boot none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from sandfleet_worker.sandbox.image.references import encode_name


def write_image(root: Path, name: str, number: int = 1, source: str = "rootfs:x") -> str:
    """Write an image and a name of it below `root`; return its digest."""
    digest = f"sha256:{number:064x}"
    blob = root / "blobs" / digest.replace(":", "-")
    blob.mkdir(parents=True, exist_ok=True)
    (blob / "image.erofs").write_bytes(b"x")
    facts = {
        "name": name,
        "digest": digest,
        "erofs_path": "x",
        "size_bytes": 1,
        "erofs_sha256": "0" * 64,
        "created": datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        "source": source,
    }
    (blob / "image.json").write_text(json.dumps(facts))
    (root / "refs").mkdir(exist_ok=True)
    ref = {"name": name, "digest": digest, "source": source}
    (root / "refs" / f"{encode_name(name)}.json").write_text(json.dumps(ref))
    return digest
