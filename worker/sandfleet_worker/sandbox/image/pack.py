"""Prepare an unpacked tree for runsc, hash its content, and pack it into one EROFS file."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.layers import CHECK_EACH
from sandfleet_worker.sandbox.image.tools import Limits, StagingFolder

MOUNT_POINTS = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "tmp": 0o1777}
"""Directories that every image must have: runsc cannot make a mount point in a read-only root."""

JOB_FOLDERS = {"work": 0o755, "data": 0o755}
"""Directories for a job's own files and for datasets. Unlike mount points, an image's own stay."""

HOSTNAME = "sandbox"
"""The host name in every sandbox."""
HOSTS = f"127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost ip6-localhost ip6-loopback\n"

FIXED_TIME = 1_700_000_000
"""The modification time of everything but plain files, which keep their own (see `normalize`)."""

MAX_DEPTH = 128
"""Levels of folders; no program could open the paths of a deeper tree."""

FIXED_UUID = "73616e64-666c-4565-8474-696d61676521"


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a normalized tree.

    `digest` covers names, kinds, modes, owners, targets and bytes, not times.
    """

    digest: str
    size_bytes: int
    files: int
    latest: int
    """The latest modification time of any file."""


def add_mount_points(tree: Path) -> None:
    """Make /dev, /proc, /sys and /tmp real directories: runsc cannot mount on a link or a file.

    Add /work and /data where the image has nothing of that name.
    """
    tree.chmod(stat.S_IMODE(tree.stat().st_mode) | 0o555)
    for name, mode in MOUNT_POINTS.items():
        path = tree / name
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            path.mkdir()
            path.chmod(mode)
    for name, mode in JOB_FOLDERS.items():
        path = tree / name
        if not path.is_symlink() and not path.exists():
            path.mkdir()
            path.chmod(mode)


def add_hosts(tree: Path) -> None:
    """Replace the image's /etc/hosts by one that names the sandbox's own addresses, as Docker does.

    Without it nothing resolves these names: a sandbox has only a loopback network. No link of the
    tree is followed.
    """
    folder, hosts = tree / "etc", tree / "etc/hosts"
    if not folder.is_symlink() and not folder.exists():
        folder.mkdir()
        folder.chmod(0o755)
    if folder.is_symlink() or not folder.is_dir() or (hosts.is_dir() and not hosts.is_symlink()):
        return
    hosts.unlink(missing_ok=True)  # it may be a link, or one of several names of a file
    hosts.write_text(HOSTS)
    hosts.chmod(0o644)


def open_to_all(tree: Path) -> int:
    """Let every user read a tree, and nobody gain rights by it.

    Modes become 0644 or 0755, and the owner root. Devices, sockets and fifos are removed; return
    how many. No link is followed.
    """
    removed, folders = 0, [os.fsencode(tree)]
    while folders:
        folder = folders.pop()
        _open_one(folder, 0o755)
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                folders.append(entry.path)
            elif stat.S_ISREG(mode):
                _open_one(entry.path, 0o755 if mode & 0o111 else 0o644)
            elif stat.S_ISLNK(mode):
                _open_one(entry.path, None)
            else:
                os.unlink(entry.path)  # noqa: PTH108  the name is bytes, which may not be text
                removed += 1
    return removed


def _open_one(path: bytes, mode: int | None) -> None:
    if os.geteuid() == 0:
        os.lchown(path, 0, 0)
    if mode is not None:
        os.chmod(path, mode)  # noqa: PTH101  likewise


def normalize(
    tree: Path,
    began: float,
    limits: Limits,
    *,
    header: bytes,
    is_hashed: bool = True,
    is_all_root: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Content:
    """Drop device nodes and sockets, fix times, measure, and hash; `check` is called now and then.

    Each file is measured before it is read. With `is_all_root` every owner is hashed as root.

    Raises:
        ImageInvalid: the files outgrow `limits`; a sparse file counts as long as it is.
    """
    digest = hashlib.sha256(header)
    size, files, latest = 0, 0, FIXED_TIME
    seen: dict[tuple[int, int], bytes] = {}
    for path, facts in _walk(os.fsencode(tree)):
        mode = facts.st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            # gVisor makes a sandbox's devices itself, in /dev.
            os.unlink(path)  # noqa: PTH108  the name is bytes, which may not be text
            continue
        files += 1
        inode, name = (facts.st_dev, facts.st_ino), path[len(os.fsencode(tree)) :]
        if stat.S_ISREG(mode) and inode not in seen:
            size += facts.st_size
        limits.check(size, files)
        if files % CHECK_EACH == 0:
            check()
        if is_hashed:
            owner = (0, 0) if is_all_root else (facts.st_uid, facts.st_gid)
            _hash_entry(digest, path, [name, b"%o" % mode, *(b"%d" % part for part in owner)], mode, seen.get(inode))
        if facts.st_nlink > 1:
            seen.setdefault(inode, name)
        latest = max(latest, _fix_time(path, facts, began))
    return Content(digest=f"sha256:{digest.hexdigest()}", size_bytes=size, files=files, latest=latest)


def _fix_time(path: bytes, facts: os.stat_result, began: float) -> int:
    """Give everything but an old plain file the fixed time; return its time, rounded up.

    A plain file keeps its time if it is older than `began`: Python compares .pyc files with the
    times of their sources, and compiles again at each import if they differ. With one time for
    newer files, folders and links, the same source always yields the same image.
    """
    if stat.S_ISREG(facts.st_mode) and facts.st_mtime < began:
        return int(facts.st_mtime) + 1
    os.utime(path, (FIXED_TIME, FIXED_TIME), follow_symlinks=False)
    return FIXED_TIME


def _walk(folder: bytes, depth: int = 0) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield every path below in one order on every machine, a folder after what it holds.

    Links are not followed.
    """
    if depth > MAX_DEPTH:
        raise ImageInvalid.of(f"the image has folders more than {MAX_DEPTH} deep")
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        facts = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode):
            yield from _walk(entry.path, depth + 1)
        else:
            yield entry.path, facts
    yield folder, os.lstat(folder)


def _hash_entry(digest: "hashlib._Hash", path: bytes, head: list[bytes], mode: int, twin: bytes | None) -> None:
    # Invariant: no field holds a NUL byte, so two different trees never feed the hash the same
    # bytes.
    fields = list(head)
    if twin is not None and not stat.S_ISDIR(mode):
        fields += [b"same as", twin]
    elif stat.S_ISLNK(mode):
        fields.append(os.readlink(path))  # noqa: PTH115  likewise
    elif stat.S_ISREG(mode):
        fields.append(_hash_file(path))
    digest.update(b"\0".join(fields) + b"\0\n")


def _hash_file(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123  the name is bytes, maybe no text
        return hashlib.file_digest(stream, "sha256").hexdigest().encode()


def write_erofs(staging: StagingFolder, target: Path, latest: int) -> None:
    """Pack the tree; the same tree gives the same bytes.

    SOURCE_DATE_EPOCH stamps the file and cuts later times, so with the latest one it cuts none; -T
    would set them all.

    Uncompressed, with no data inside inodes: runsc reads nothing else. No extended attributes:
    capabilities on files mean nothing in a sandbox without privileges, and the host's security
    labels are not the image's.
    """
    staging.run(
        [
            "mkfs.erofs",
            "--quiet",
            "-x-1",
            "--preserve-mtime",
            f"-U{FIXED_UUID}",
            *([] if os.geteuid() == 0 else ["--all-root"]),
            "-Enoinline_data",
            str(target),
            str(staging.tree),
        ],
        {"SOURCE_DATE_EPOCH": str(latest)},
        is_limited=False,
    )
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def hash_whole(path: Path) -> str:
    """Return the sha256 of a file, to tell later whether it was damaged."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
