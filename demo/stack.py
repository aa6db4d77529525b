"""A stack of a demo's own: Redis and one worker, with all their state in one folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from sandfleet_config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_DEADLINE_SECONDS = 120
END_DEADLINE_SECONDS = 60
SCRIPTS = Path(sys.executable).parent

console = Console()


def stack_environment(folder: Path) -> dict[str, str]:
    """Return the variables by which a stack keeps all it has in `folder`, and commands find it."""
    environment = {
        **os.environ,
        "SANDFLEET_LOCAL_DIR": str(folder / "local"),
        "SANDFLEET_LOCAL_STATE_DIR": str(folder / "state"),
        "SANDFLEET_SLOTS_DIR": str(folder / "slots"),
        "SANDFLEET_RUNSC__ROOT_DIR": str(folder / "runsc"),
        "SANDFLEET_FILES__CACHE_DIR": str(folder / "files"),
        "SANDFLEET_FILES__SPOOL_DIR": str(folder / "spool"),
    }
    environment.pop("SANDFLEET_REDIS_URL", None)
    return environment


@contextmanager
def embedded_stack(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[Settings]:
    """Run `sandfleet-worker local` (Redis, one worker, no Flower) with its state in `folder`."""
    environment = stack_environment(folder) | dict(more or {})
    with running(
        [str(SCRIPTS / "sandfleet-worker"), "local", "--no-flower"], environment, folder / "stack.log"
    ) as stack:
        wait_for_line("sandfleet is up", stack, folder / "stack.log")
        yield Settings(local_dir=folder / "local")


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command that goes on until SIGTERM, its output in a file."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_line(words: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    """Wait until the log has `words`; show the log if the process ends instead, or is too slow."""
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        text = log_path.read_text(errors="replace")
        if words in text:
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    console.print(log_path.read_text(errors="replace"), markup=False)
    sys.exit(f"it did not come up ({words!r} is not in its log, which is above)")


def add_python_image() -> None:
    """Make the image `python`, unless the host has it."""
    console.print("making sure of the image `python` (the first time takes about half a minute)")
    subprocess.run([str(SCRIPTS / "sandfleet-worker"), "images", "add", "python"], check=True)


def find_left(folder: Path) -> list[str]:
    """Return the processes that still use a demo's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(folder) in words:
            found.append(words)
    return found
