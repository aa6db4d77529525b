"""The headers of a layer are read as tar and umoci read them."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.errors import Cancelled
from sandfleet_worker.sandbox.image.layers import check_layers, read_tar_sizes
from sandfleet_worker.sandbox.image.oci import Layer
from sandfleet_worker.sandbox.image.tools import Limits

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 512
MIB = 1 << 20


def member(name: str, data: bytes = b"", pax: dict[str, str] | None = None, *, told: int | None = None) -> bytes:
    """Return one file of a tar; its header says `told` bytes where that is given."""
    info = tarfile.TarInfo(name)
    info.size = len(data) if told is None else told
    info.pax_headers = pax or {}
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % BLOCK)


def read_sizes(*members: bytes) -> list[int]:
    return list(read_tar_sizes(io.BytesIO(b"".join(members) + bytes(2 * BLOCK))))


def test_a_size_that_only_its_pax_record_names_is_skipped_with_the_file() -> None:
    """Go's archive/tar writes 0 into the header of a file of 8 GiB and more."""
    data = b"x" * BLOCK + bytes(BLOCK)
    large = member("large", data, {"size": str(len(data))}, told=0)
    assert read_sizes(large, member("next", b"abc")) == [2 * BLOCK, 3]
    zeros = member("zeros", bytes(BLOCK), {"size": str(BLOCK)}, told=0)
    assert read_sizes(zeros, member("hidden", b"abc")) == [BLOCK, 3]


def test_a_sparse_file_counts_as_long_as_it_is() -> None:
    sparse = member("sparse", b"abc", {"GNU.sparse.realsize": str(1 << 40)})
    assert read_sizes(sparse, member("next")) == [1 << 40, 0]


def test_a_wait_for_a_large_layer_can_be_cancelled(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    with gzip.open(layer, "wb", compresslevel=1) as file:
        file.write(member("zeros", told=200 * MIB))
        for _ in range(200):
            file.write(bytes(MIB))

    def cancel() -> None:
        raise Cancelled.of("cancelled")

    with pytest.raises(Cancelled):
        check_layers([Layer(layer, "application/vnd.oci.image.layer.v1.tar+gzip")], Limits(), cancel)
