"""Upload a file and fetch it, and print the growth of the process's memory: (up, down) in MiB."""

from __future__ import annotations

import sys
from pathlib import Path

import redis
from sandfleet_config.settings import Settings
from sandfleet_config.store import open_store
from store_kinds import sha_of

MIB = 1 << 20


def read_memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(field))) << 10


def main(name: str, source: Path, target: Path) -> None:
    """Measure both ways; a small object before them starts obstore's threads."""
    store = open_store(Settings(), redis.Redis())
    for data in (b"small", b"s" * 9 * MIB):
        store.put_bytes(sha_of(data), data)
        list(store.read(sha_of(data)))
    grown: list[int] = []
    for step in (lambda: store.put_file(name, source), lambda: store.fetch(name, target)):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, proc(5)
        before = read_memory("VmRSS")
        step()
        grown.append(read_memory("VmHWM") - before)
    sys.stdout.write(" ".join(str(size // MIB) for size in grown))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
