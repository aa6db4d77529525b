"""Collect the files of a job's patterns, within bounds, from a sandbox whose job has ended."""

from __future__ import annotations

import errno
import logging
import os
import re
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import SandboxError
from sandfleet_config.units import format_bytes, format_count

from sandfleet_worker.sandbox.process.artifacts import CollectedFile, Collection
from sandfleet_worker.sandbox.process.collect_channel import (
    LEFT_OUT,
    REGULAR,
    UNKNOWN,
    CollectChannel,
    CollectionBrokenError,
)
from sandfleet_worker.sandbox.process.inputs import WORK_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandfleet_worker.sandbox.process.artifacts import ArtifactPattern, ArtifactRequest, CollectLimits
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.collect_channel import Entry
    from sandfleet_worker.sandbox.process.facts import Facts
    from sandfleet_worker.sandbox.process.globs import Glob
    from sandfleet_worker.sandbox.process.supervision import Supervision

log = logging.getLogger(__name__)

MAX_DEPTH: Final = 64
"""The deepest folder that init lists, counted from the first one that it opens."""
GONE: Final = "the sandbox had gone with the job, and its files with it"
GONE_FOR_MEMORY: Final = f"{GONE}: it ran out of memory"
MAX_NAMES_BYTES: Final = 16 << 20
"""How long the paths that patterns name may be together; they are all held in memory at once."""
MAX_TOLD_BYTES: Final = 1 << 20
"""How long the paths of the collected files may be together: the outcome, in Redis, has all."""
SHOWN_LOSSES: Final = 5
SHOWN_CHARS: Final = 100
ENTRIES_BETWEEN_CHECKS: Final = 64
_KINDS: Final = {1: "a fifo", 2: "a device", 6: "a device", 10: "a symbolic link", 12: "a socket"}
# Unicode's categories Cc, Cs, Zl and Zp, and the marks of its bidirectional algorithm (UAX #9). As
# a regular expression, since a job may leave names of many megabytes.
_UNSAFE: Final = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\u2028\\u2029\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]"
)


class Losses:
    """Why files that were asked for did not come: the first ones in full, then their number."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._count = 0

    def note(self, path: str, why: str) -> None:
        """Note the loss of one file, or of all with an empty path."""
        self._count += 1
        if len(self._shown) < SHOWN_LOSSES:
            self._shown.append(f"{_show(path)}: {why}" if path else why)

    def to_text(self) -> str:
        """Return one sentence, empty if nothing was lost."""
        more = self._count - len(self._shown)
        return "; ".join([*self._shown, *([f"and {more} more"] if more else [])])


def _show(path: str) -> str:
    cut = path if len(path) <= SHOWN_CHARS else f"{path[:SHOWN_CHARS]}..."
    return cut if is_plain_name(cut) else ascii(cut)


def is_plain_name(path: str) -> bool:
    """Whether a path is UTF-8 text without control characters or marks that turn text around.

    Such names could forge lines of a terminal or a log wherever the outcome is shown.
    """
    return _UNSAFE.search(path) is None


def collect_artifacts(
    supervision: Supervision,
    request: ArtifactRequest | None,
    facts: Facts,
    cancel: Cancellation,
    is_ok: Callable[[Facts], bool],
) -> Collection | None:
    """Collect what `request` asks for after such an end, if the sandbox is held; never raise.

    Return None if nothing was asked for.
    """
    if request is None:
        return None
    patterns = request.select(is_ok=is_ok(facts))
    if not patterns or not facts.is_started:
        return Collection()
    if not supervision.is_held:
        return Collection(lost=GONE_FOR_MEMORY if facts.counts.oom_kills else GONE)
    channel = CollectChannel(supervision.pipes, cancel, request.limits.seconds)
    try:
        return collect(channel, request, patterns)
    except Exception:
        # The job has ended, and how it ended is known: no fault of ours may change that.
        log.exception("cannot collect a job's files", extra={"action": "collection_failed"})
        return Collection(lost="a fault in sandfleet itself: see the worker's log")
    finally:
        channel.close()


def collect(channel: CollectChannel, request: ArtifactRequest, patterns: Sequence[ArtifactPattern]) -> Collection:
    """Give the sink of `request` all files that `patterns` name, in the order of their paths."""
    losses = Losses()
    files: list[CollectedFile] = []
    wanted: dict[str, int] = {}
    try:
        wanted = _find(channel, request, patterns, losses)
        _fetch(channel, request, wanted, losses, files)
    except CollectionBrokenError as error:
        losses.note("", str(error))
    except SandboxError as error:
        losses.note("", error.message)
    except OSError as error:
        losses.note("", f"the worker's host cannot keep them: {error.strerror}")
    text = losses.to_text()
    if text and len(files) < len(wanted):
        text = f"{len(files)} of {format_count(len(wanted), 'file was', 'files were')} collected: {text}"
    return Collection(tuple(files), text)


def _find(
    channel: CollectChannel, request: ArtifactRequest, patterns: Sequence[ArtifactPattern], losses: Losses
) -> dict[str, int]:
    """Return the sorted paths of the plain files of a pattern, with the most bytes of each."""
    folders: dict[str, list[tuple[Glob, int]]] = {}
    for pattern in patterns:
        glob = pattern.compile()
        most = min(pattern.max_bytes or request.limits.max_file_bytes, request.limits.max_file_bytes)
        folders.setdefault(glob.folder, []).append((glob, most))
    found: dict[str, int] = {}
    noted: set[str] = set()
    left, names_left = request.limits.max_entries, MAX_NAMES_BYTES
    for folder, globs in folders.items():
        for entry in _list(channel, folder, globs, left):
            left -= 1
            if left % ENTRIES_BETWEEN_CHECKS == 0:
                channel.check()
            path = "/".join(filter(None, (folder, os.fsdecode(entry.path))))
            why, allowed = _judge(entry, path, globs, request.limits.max_entries)
            if names_left > 0 and (why or allowed is not None):
                names_left -= len(entry.path)
            if names_left <= 0:
                continue
            if why and path not in noted:
                noted.add(path)
                losses.note(path or WORK_FOLDER, why)
            elif allowed is not None:
                found[path] = max(allowed, found.get(path, 0))
    if names_left <= 0:
        bound = format_bytes(MAX_NAMES_BYTES)
        losses.note("", f"the paths of the files take more than {bound}; the others were not looked at")
    return dict(sorted(found.items()))


def _list(channel: CollectChannel, folder: str, globs: Sequence[tuple[Glob, int]], most: int) -> Iterator[Entry]:
    depths = [glob.depth for glob, _ in globs]
    depth = MAX_DEPTH if None in depths else max(number or 0 for number in depths)
    return channel.list(f"{WORK_FOLDER}/{folder}".rstrip("/"), max(0, most), depth)


def _judge(entry: Entry, path: str, globs: Sequence[tuple[Glob, int]], max_entries: int) -> tuple[str, int | None]:
    """Return why an entry that is asked for cannot come, or the most bytes that it may have.

    Neither of them if no pattern names it.
    """
    if entry.kind == LEFT_OUT:
        return _explain_left_out(entry, max_entries), None
    allowed = [most for glob, most in globs if glob.matches(path)]
    if not allowed:
        return "", None
    if entry.kind not in {REGULAR, UNKNOWN}:
        return f"{_KINDS.get(entry.kind, 'no plain file')} is never collected", None
    if not is_plain_name(path):
        return "its name has control characters, or is not UTF-8: choose another name", None
    return "", max(allowed)


def _explain_left_out(entry: Entry, max_entries: int) -> str:
    """Return why a folder was not listed; empty if it is missing: the job wrote nothing."""
    if entry.errno == errno.E2BIG and not entry.path:
        return f"there are more than {max_entries} files and folders; the others were not looked at"
    if entry.errno == errno.E2BIG:
        return f"folders are searched {MAX_DEPTH} deep; those below were not looked at"
    if not entry.path and entry.errno == errno.ENOENT:
        return ""
    if entry.errno in {errno.ENOTDIR, errno.ELOOP}:
        return "no folder, or behind a symbolic link, which is never followed"
    return f"cannot be searched: {os.strerror(entry.errno)}"


def _fetch(
    channel: CollectChannel,
    request: ArtifactRequest,
    wanted: dict[str, int],
    losses: Losses,
    files: list[CollectedFile],
) -> None:
    """Give the sink each of the `wanted` files, and add it to `files` once the sink has it."""
    limits = request.limits
    files_left, bytes_left, names_left = limits.max_files, limits.max_total_bytes, MAX_TOLD_BYTES
    for path, most in wanted.items():
        names_left -= len(os.fsencode(path))
        if names_left < 0:
            losses.note(
                "", f"the paths of the files are longer than {format_bytes(MAX_TOLD_BYTES)} together: shorten them"
            )
            return
        if not files_left:
            most_files = format_count(limits.max_files, "file is", "files are")
            losses.note("", f"at most {most_files} collected (SANDFLEET_POLICY__ARTIFACT_FILES)")
            return
        head = channel.open(f"{WORK_FOLDER}/{path}", min(most, bytes_left))
        if head.errno == errno.EFBIG:
            bound = _describe_bound(most, limits) if head.size > most else _sum_of(limits.max_total_bytes)
            losses.note(path, f"has {format_bytes(head.size)}, more than {bound}")
        elif head.errno:
            losses.note(path, os.strerror(head.errno))
        elif not (failure := _copy(channel, request, path, head.size, head.mode)):
            files.append(CollectedFile(path, head.size, head.mode))
            files_left, bytes_left = files_left - 1, bytes_left - head.size
        else:
            losses.note(path, failure)


def _describe_bound(most: int, limits: CollectLimits) -> str:
    name = "SANDFLEET_POLICY__ARTIFACT_BYTES" if most == limits.max_file_bytes else "max_bytes of its pattern"
    return f"{format_bytes(most)} ({name})"


def _sum_of(max_bytes: int) -> str:
    return f"is left of {format_bytes(max_bytes)} for all files (SANDFLEET_POLICY__ARTIFACTS_BYTES)"


def _copy(channel: CollectChannel, request: ArtifactRequest, path: str, size: int, mode: int) -> str:
    """Give one file to the sink; return why it could not be read."""
    sink = request.sink
    sink.begin(path, size, mode)
    is_whole = False
    try:
        parts = channel.read()
        while True:
            try:
                part = next(parts, None)
            except OSError as error:  # of the file, not of the sink
                return error.strerror or "cannot be read"
            if part is None:
                break
            sink.write(part)
        sink.end()
        is_whole = True
    finally:
        if not is_whole:
            sink.drop()
    return ""
