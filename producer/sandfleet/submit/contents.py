"""Move contents that are too large to travel in a spec into the store.

A content of a file, or stdin, travels in the spec while it is small: the job then needs no store,
and a host fetches nothing. A file that is moved has the same fingerprint, so the job stays the same
job. A moved stdin has another one: released fingerprints are of its text.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from sandfleet_config.fingerprint import spec_sha256

from sandfleet.files.reference import FileRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet_config.files import Content, FileSpec
    from sandfleet_config.spec import SandboxSpec

MAX_INLINE_CHARS: Final = 32 * 1024
"""Most characters of encoded file contents in a spec: more would fill Redis with copies."""
LEAST_MOVED_CHARS: Final = 1024
"""A shorter content stays in a spec that fits: an object of its own costs more than the copies."""
LEAST_USEFUL_CHARS: Final = 128
"""The shortest content worth moving out of a too large spec: a reference is hardly shorter."""
REFERENCE_CHARS: Final = 100
"""Characters of the reference that replaces a moved content, about."""
_STDIN: Final = -1
"""The index of stdin among the files."""


class Contents:
    """The moved contents, until they are taken for the upload; `pending_bytes` is their size."""

    def __init__(self) -> None:
        self.pending_bytes = 0
        self._pending: dict[FileRef, Content] = {}

    def take(self) -> dict[FileRef, Content]:
        """Return the contents that were moved since the last call, by what now refers to them."""
        taken, self._pending, self.pending_bytes = self._pending, {}, 0
        return taken

    def move_large(self, spec: SandboxSpec) -> SandboxSpec:
        """Return `spec` with at most `MAX_INLINE_CHARS` of file contents; moves the largest first.

        Contents shorter than `LEAST_MOVED_CHARS` stay, however many there are.
        """
        inline = _list_inline(spec)
        excess = sum(len(content.data) for _, content in inline) - MAX_INLINE_CHARS
        return self._move_files(spec, _choose_largest(inline, excess, LEAST_MOVED_CHARS))

    def shorten(self, spec: SandboxSpec, excess: int) -> SandboxSpec:
        """Return `spec` without so many contents that it is `excess` characters shorter, if it can.

        The largest are moved first; stdin is one of them.
        """
        chosen = _choose_largest([*_list_inline(spec), (_STDIN, spec.stdin)], excess, LEAST_USEFUL_CHARS)
        if chosen.pop(_STDIN, None):
            spec = spec.model_copy(update={"stdin": self._move(spec.stdin).as_stdin()})
        return self._move_files(spec, chosen)

    def _move_files(self, spec: SandboxSpec, chosen: dict[int, Content]) -> SandboxSpec:
        if not chosen:
            return spec
        moved = {index: self._move_file(spec.files[index], content) for index, content in chosen.items()}
        files = tuple(moved.get(index, file) for index, file in enumerate(spec.files))
        return spec.model_copy(update={"files": files})

    def _move_file(self, file: FileSpec, content: Content) -> FileSpec:
        ref = self._move(content)
        return file.model_copy(update={"content": None, "sha256": ref.sha256, "size": ref.size})

    def _move(self, content: Content) -> FileRef:
        raw = content.to_bytes()
        ref = FileRef(hashlib.sha256(raw).hexdigest(), len(raw))
        if ref not in self._pending:
            self._pending[ref] = content
            self.pending_bytes += ref.size
        return ref


def list_fingerprints(spec: SandboxSpec) -> Iterator[str]:
    """Yield the fingerprints that a job with `spec` may have: stdin in the spec, and in the store.

    Which one depends on the size that the submit allowed.
    """
    yield spec_sha256(spec)
    if len(spec.stdin.data) >= LEAST_USEFUL_CHARS:
        raw = spec.stdin.to_bytes()
        stdin = FileRef(hashlib.sha256(raw).hexdigest(), len(raw)).as_stdin()
        yield spec_sha256(spec.model_copy(update={"stdin": stdin}))


def _list_inline(spec: SandboxSpec) -> list[tuple[int, Content]]:
    """Return index and content of each file that has its content in the spec."""
    return [(index, file.content) for index, file in enumerate(spec.files) if file.content is not None]


def _choose_largest(inline: Sequence[tuple[int, Content]], excess: int, least: int) -> dict[int, Content]:
    """Return the largest contents of `excess` characters in all, with their indexes.

    None is shorter than `least`.
    """
    chosen: dict[int, Content] = {}
    for index, content in sorted(inline, key=lambda pair: -len(pair[1].data)):
        if excess <= 0 or len(content.data) < least:
            break
        excess -= len(content.data) - REFERENCE_CHARS
        chosen[index] = content
    return chosen
