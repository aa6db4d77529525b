"""Read the headers of an image's layers before a byte is unpacked; refuse too large layers.

The input is hostile. Only sizes and numbers are read here. What a layer does to the tree is umoci's
business; its limits hold also for a layer whose headers lie (`tools.StagingFolder.run`,
`pack.normalize`).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from sandfleet_config.errors import ImageInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sandfleet_worker.sandbox.image.oci import Layer
    from sandfleet_worker.sandbox.image.tools import Limits

BLOCK: Final = 512
MAX_EXTENSION_BYTES: Final = 1 << 20
"""The most bytes of a long name or of pax records: as many as Go's archive/tar (umoci) takes."""
CHECK_EACH: Final = 2000
_READ_BYTES = 1 << 18
_WITHOUT_DATA = frozenset(b"123456")
_EXTENSIONS = frozenset(b"xgLK")
_PAX_SPARSE = frozenset({b"GNU.sparse.size", b"GNU.sparse.realsize"})
_CHECK_EACH_BYTES = 64 << 20


def check_layers(layers: Iterable[Layer], limits: Limits, check: Callable[[], None]) -> None:
    """Count the files of all layers, and their bytes by their headers; call `check` now and then.

    Raises:
        ImageInvalid: they are more than `limits` allows.
    """
    size = files = 0
    for layer in layers:
        for entry in _read_sizes(layer, limits, check):
            size, files = size + entry, files + 1
            limits.check(size, files)
            if files % CHECK_EACH == 0:
                check()


def _read_sizes(layer: Layer, limits: Limits, check: Callable[[], None]) -> Iterator[int]:
    """Yield how long each file of a layer is; nothing for a kind that umoci will refuse."""
    if not layer.media_type.endswith(("gzip", "tar")):
        return
    try:
        with layer.path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            reader = _Unpacked(file, limits, check) if is_packed else file
            yield from read_tar_sizes(reader)
    except (OSError, zlib.error, EOFError) as error:
        raise ImageInvalid.of(f"a layer of the image is damaged ({error}): push the image again") from error


class _Reader(Protocol):
    def read(self, count: int, /) -> bytes: ...


def read_tar_sizes(stream: _Reader) -> Iterator[int]:
    """Yield the size of each entry of a tar, as tar and Go's archive/tar will make it.

    That of a sparse file is its whole length.
    """
    packed = real = None
    while len(head := stream.read(BLOCK)) == BLOCK and head.strip(b"\0"):
        kind = head[156]
        length = _read_number(head[124:136])
        if kind in _EXTENSIONS:
            if length > MAX_EXTENSION_BYTES:
                raise ImageInvalid.of(f"a layer of the image has a name or an attribute of {length} bytes")
            data = stream.read(_round_up(length))
            if kind == ord("x"):
                packed, real = _read_pax_sizes(data[:length])
            continue
        # The header of a file of 8 GiB and more may say 0: then only the pax record counts.
        in_archive = 0 if kind in _WITHOUT_DATA else length if packed is None else packed
        whole = max(in_archive, real or 0)
        if kind == ord("S"):
            whole = max(whole, _read_number(head[483:495]))
            is_more = head[482]
            while is_more:
                block = stream.read(BLOCK)
                is_more = len(block) == BLOCK and block[504]
        yield 0 if kind in _WITHOUT_DATA else whole
        packed = real = None
        _skip(stream, _round_up(in_archive))


def _read_number(field: bytes) -> int:
    """Return a header's number: octal digits, or base 256 if the first bit is set; else 0."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.strip(b" \0")
    return int(text, 8) if text and not text.strip(b"01234567") else 0


def _read_pax_sizes(records: bytes) -> tuple[int | None, int | None]:
    """Return the size in the archive and that of the whole sparse file, where records have them."""
    found: dict[bytes, int] = {}
    for line in records.split(b"\n"):
        key, _, value = line.partition(b" ")[2].partition(b"=")
        if key in {b"size", *_PAX_SPARSE} and value.isdigit() and len(value) < 30:  # noqa: PLR2004  larger than any file
            found[key] = int(value)
    return found.pop(b"size", None), max(found.values(), default=None)


def _round_up(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _skip(stream: _Reader, count: int) -> None:
    while count > 0:
        data = stream.read(min(count, _READ_BYTES))
        if not data:
            return
        count -= len(data)


class _Unpacked:
    """A gzip file as it is unpacked, part by part; ends at `limits`, however much a bomb holds."""

    def __init__(self, file: BinaryIO, limits: Limits, check: Callable[[], None]) -> None:
        self._file, self._limits, self._check, self._checked = file, limits, check, 0
        self._inflate = zlib.decompressobj(wbits=31)
        self._buffer, self._at, self._total = b"", 0, 0
        self._rest = b""

    def read(self, count: int, /) -> bytes:
        """Return the next `count` bytes; fewer at the end."""
        while len(self._buffer) - self._at < count:
            more = self._read_part()
            if not more:
                break
            self._buffer, self._at = self._buffer[self._at :] + more, 0
        data = self._buffer[self._at : self._at + count]
        self._at += len(data)
        return data

    def _read_part(self) -> bytes:
        while True:
            data = self._rest or self._file.read(_READ_BYTES)
            if not data:
                return b""
            if self._inflate.eof:  # one gzip file after another is one stream
                self._inflate = zlib.decompressobj(wbits=31)
            part = self._inflate.decompress(data, _READ_BYTES)
            self._rest = self._inflate.unconsumed_tail or self._inflate.unused_data
            if part:
                self._total += len(part)
                if self._total - self._checked >= _CHECK_EACH_BYTES:
                    self._check()
                    self._checked = self._total
                # Headers and padding take at most 1.5 KiB a file.
                if self._total > self._limits.max_bytes + self._limits.max_files * 3 * BLOCK:
                    self._limits.check(self._total, 0)
                return part
